from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qdeploy.core.errors import InputError
from qdeploy.core.machine import peak_memory_bytes
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.runtime.bench import BenchConfig, bench, compare, latency_summary, sample_images


def test_the_report_is_complete_and_plausible(fp32_file: Path, int8_file: Path) -> None:
    report = bench([fp32_file, int8_file], BenchConfig(runs=700))
    assert report.environment["versions"]["onnxruntime"]
    assert report.environment["threads"] == 1
    for result, file in zip(report.results, (fp32_file, int8_file), strict=True):
        times = result.latency_ms
        assert result.n == 700
        assert None not in times.values()
        assert 0.01 < times["p50"] <= times["p90"] <= times["p95"] <= times["p99"] < 1000  # type: ignore[operator]
        assert result.throughput_per_s == pytest.approx(1000 / times["mean"])  # type: ignore[operator]
        assert result.model_bytes == file.stat().st_size
        assert 20e6 < result.base_rss_bytes < result.peak_rss_bytes < 150e6
        assert result.cold_start_ms > result.load_ms > 0
        assert result.first_ms > 0
        assert result.accuracy["n"] == 1000
    (comparison,) = report.comparisons
    assert comparison.ci95[0] <= comparison.ratio <= comparison.ci95[1]


def test_too_few_samples_state_no_tail() -> None:
    assert latency_summary([1.0] * 63)["p90"] is None
    assert latency_summary([1.0] * 64)["p90"] == 1.0
    assert latency_summary([1.0] * 661)["p99"] is None
    assert latency_summary([1.0] * 662)["p99"] == 1.0


def rounds(scale: float, noise: float, seed: int) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    return (scale * (1 + noise * rng.standard_normal((50, 10)))).tolist()


def test_a_win_is_claimed_only_beyond_noise() -> None:
    faster = compare("new", "old", rounds(1.0, 0.02, 0), rounds(1.5, 0.02, 1))
    assert faster.verdict == "faster"
    assert faster.ratio == pytest.approx(1.5, rel=0.02)
    assert compare("new", "old", rounds(1.5, 0.02, 0), rounds(1.0, 0.02, 1)).verdict == "slower"
    assert compare("new", "old", rounds(1.0, 0.3, 0), rounds(1.0, 0.3, 1)).verdict == "no difference beyond noise"


def test_the_runs_rotate_over_sixty_four_different_images() -> None:
    images = sample_images(Preprocessing())
    assert images.shape == (64, 64, 64, 3)
    assert len({i.tobytes() for i in images}) == 64


def test_a_file_in_the_user_s_folder_is_never_imported(
    int8_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported from the working folder')")
    monkeypatch.chdir(tmp_path)
    assert bench([int8_file], BenchConfig(runs=10)).results[0].load_ms > 0


def test_two_files_of_one_name_are_told_apart(int8_file: Path, tmp_path: Path) -> None:
    shutil.copy(int8_file, tmp_path / "other.onnx")
    report = bench([int8_file, tmp_path / "other.onnx"], BenchConfig(runs=10, batch_size=3))
    assert report.comparisons[0].model == str(tmp_path / "other.onnx")


def test_peak_memory_is_this_process_s_own() -> None:
    ballast = bytearray(300_000_000)
    code = "from qdeploy.core.machine import peak_memory_bytes; print(peak_memory_bytes())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert child < 100e6 < 300e6 < peak_memory_bytes()
    assert len(ballast) == 300_000_000


@pytest.mark.parametrize("fields", [{"threads": 0}, {"batch_size": 0}, {"runs": 1}, {"seconds": 0.0}])
def test_values_out_of_range_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(InputError):
        BenchConfig(**fields)
