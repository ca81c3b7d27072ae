"""``bench`` as a whole, on the models that ship in the package."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qdeploy.bench import BenchConfig, BenchReport, bench, encoded_images, latency_summary, sample_images
from qdeploy.bench.baseline import changes_since, read_baseline, require_comparable
from qdeploy.bench.fresh import NO_GROWTH, growth_of
from qdeploy.bench.page import html_page
from qdeploy.bench.phases import PHASES
from qdeploy.bench.run import subjects_of
from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.errors import InputError
from qdeploy.core.machine import peak_memory_bytes
from qdeploy.core.preprocessing import Preprocessing

pytestmark = pytest.mark.xdist_group("bench")
FP32, INT8 = SHIPPED / "model.fp32.onnx", SHIPPED / "model.int8.onnx"


@pytest.fixture(scope="module")
def report() -> BenchReport:
    return bench([FP32, INT8], BenchConfig(quick=True, runs=720, seconds=30))


@pytest.fixture
def document(report: BenchReport) -> dict[str, Any]:
    """A copy of its own, as a file would hold it."""
    return json.loads(json.dumps(report.to_dict(), allow_nan=False))


def test_the_report_is_complete_and_plausible(report: BenchReport) -> None:
    assert report.environment["versions"]["onnxruntime"]
    assert report.environment["threads"] == 1
    for result, file in zip(report.results, (FP32, INT8), strict=True):
        times = result.latency_ms
        assert result.n == 720
        assert None not in times.values()
        assert 0.01 < times["p50"] <= times["p90"] <= times["p95"] <= times["p99"] < 1000  # type: ignore[operator]
        assert result.throughput_per_s == pytest.approx(1000 / times["mean"])  # type: ignore[operator]
        assert len(result.launches_p50_ms) == 4
        assert min(result.launches_p50_ms) <= times["p50"] <= max(result.launches_p50_ms)  # type: ignore[operator]
        assert sum(result.histogram["counts"]) + result.histogram["above"] == 720
        assert result.model_bytes == file.stat().st_size
        assert result.cold_start_ms > result.import_ms + result.load_ms > result.load_ms > 0
        assert result.first_ms > 0
        assert result.accuracy["n"] == 10_000
    (comparison,) = report.comparisons
    assert comparison.ci95[0] < comparison.ratio < comparison.ci95[1]


def test_memory_is_told_rung_by_rung(report: BenchReport) -> None:
    for result in report.results:
        rungs = list(result.ladder_bytes.values())
        assert len(rungs) == 5
        assert rungs == sorted(rungs)
        assert 5e6 < rungs[0] < result.base_rss_bytes < rungs[1] < rungs[2] < rungs[3] < 150e6
        assert rungs[2] < result.peak_rss_bytes < 150e6
        assert result.growth is not None
        assert result.growth.finding == NO_GROWTH


def test_the_phases_add_up_to_the_whole(report: BenchReport) -> None:
    for result in report.results:
        assert result.phases_ms is not None
        assert tuple(result.phases_ms) == PHASES
        means = [phase["mean"] or 0.0 for phase in result.phases_ms.values()]
        assert sum(means[:-1]) == pytest.approx(means[-1], rel=1e-3)
        assert min(means) > 0


def test_a_quick_look_says_so_everywhere(report: BenchReport, document: dict[str, Any]) -> None:
    assert document["quick"] is True
    assert document["validity"]["valid"] is False
    assert document["validity"]["words"].startswith("not valid for publication: a quick look")
    assert "(quick)" in html_page(document)


def test_the_page_has_its_pictures_and_nothing_from_elsewhere(document: dict[str, Any]) -> None:
    document["results"][0]["name"] = "<script>alert(1)</script>"
    page = html_page(document)
    assert page.count("<svg") == 5  # the verdict's sign, latency, comparison, phases, memory
    for word in (
        "Not valid for publication",
        "p99",
        "preprocess",
        "no growth beyond noise",
        "SHA-256",
        "not available",
    ):
        assert word in page
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_service_that_leaks_is_found() -> None:
    code = (
        "from qdeploy.checks.probe import resident_over; kept = []; "
        "print(resident_over(lambda: kept.append(bytes(3000)), 4000, 10.0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    leaking = growth_of([(runs, size) for runs, size in json.loads(done.stdout.translate({40: "[", 41: "]"}))])
    assert leaking is not None
    assert leaking.finding == "grows"
    assert leaking.bytes_per_run == pytest.approx(3000, rel=0.2)
    once = growth_of([(i, 50_000_000 + (4_000_000 if i > 40 else 0)) for i in range(64)])
    assert once is not None
    assert once.finding == NO_GROWTH
    assert growth_of([(1, 1), (2, 2)]) is None
    settling = growth_of([(i, 50_000_000 + 500 * i) for i in range(64)])
    assert settling is not None
    assert settling.finding == NO_GROWTH


def test_engines_and_equal_files_get_names_of_their_own(tmp_path: Path) -> None:
    shutil.copy(INT8, tmp_path / "other.onnx")
    config = BenchConfig(runs=10, quick=True, details=False, batch_size=3)
    found = bench([INT8, tmp_path / "other.onnx"], config)
    assert [r.name for r in found.results] == ["model.int8.onnx", "other.onnx"]
    assert [(r.batch, r.samples, r.phases_ms) for r in found.results] == [(3, 3, None)] * 2
    artifacts = [read_artifact(INT8), read_artifact(INT8)]
    pairs = [s.name for s in subjects_of(artifacts, ("ort", "tensorrt"))]
    assert pairs == [f"nano-fashion-mnist int8 #{i} {engine}" for i in (1, 2) for engine in ("ort", "tensorrt")]


@pytest.mark.parametrize(
    ("config", "samples"),
    [
        (BenchConfig(scenario="multi-stream", runs=20, details=False, quick=True), 8),
        (BenchConfig(scenario="offline", samples_per_query=20, runs=10, details=False, quick=True), 20),
        (BenchConfig(scenario="server", rate=200, runs=100, latency_ms=1e4, details=False, quick=True), 1),
    ],
)
def test_every_scenario_runs(config: BenchConfig, samples: int) -> None:
    (result,) = bench([INT8], config).results
    assert (result.scenario, result.samples) == (config.scenario, samples)
    assert result.n >= 10
    if result.server is None:
        assert result.throughput_per_s == pytest.approx(samples * 1e3 / (result.latency_ms["mean"] or 0))
    else:
        assert result.server.rate_per_s == 200
        assert result.server.percentile_ms is None  # 100 queries do not state p99
        assert result.throughput_per_s <= 200


def test_too_few_samples_state_no_tail() -> None:
    assert latency_summary([1.0] * 63)["p90"] is None
    assert latency_summary([1.0] * 64)["p90"] == 1.0
    assert latency_summary([1.0] * 661)["p99"] is None
    assert latency_summary([1.0] * 662)["p99"] == 1.0


def test_the_runs_rotate_over_sixty_four_different_images() -> None:
    images = sample_images(Preprocessing())
    assert images.shape == (64, 64, 64, 3)
    assert len({i.tobytes() for i in images}) == 64
    files = encoded_images()
    assert len(set(files)) == 64
    assert files == encoded_images()
    again = np.stack([Preprocessing()(f) for f in files])
    assert np.abs(again.astype(int) - images).mean() < 12  # the same pictures
    with Image.open(io.BytesIO(files[0])) as image:
        assert (image.format, image.size) == ("JPEG", (128, 128))


@pytest.mark.parametrize("safe", ["", "1"])
def test_a_file_in_the_user_s_folder_is_never_imported(
    safe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", safe)
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported from the working folder')")
    monkeypatch.chdir(tmp_path)
    assert bench([INT8], BenchConfig(runs=10, quick=True)).results[0].load_ms > 0


def test_peak_memory_is_this_process_s_own() -> None:
    ballast = bytearray(300_000_000)
    code = "from qdeploy.core.machine import peak_memory_bytes; print(peak_memory_bytes())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert child < 100e6 < 300e6 < peak_memory_bytes()
    assert len(ballast) == 300_000_000


@pytest.mark.parametrize("fields", [{"threads": 0}, {"batch_size": 0}, {"runs": 1}, {"seconds": 0.0}])
def test_values_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        BenchConfig(**fields)


def test_a_regression_is_beyond_the_spread_and_the_tolerance(document: dict[str, Any]) -> None:
    slower = json.loads(json.dumps(document))
    for r in slower["results"]:
        r["launches_p50_ms"] = [1.0, 1.02, 0.98, 1.01, 0.99]
    base = json.loads(json.dumps(slower))
    assert not any(c.regression for c in changes_since(base, slower))
    slower["results"][1]["launches_p50_ms"] = [1.3, 1.32, 1.28, 1.31, 1.29]
    changes = changes_since(base, slower)
    assert [(c.what, c.regression) for c in changes] == [
        ("latency", False),
        ("peak memory", False),
        ("latency", True),
        ("peak memory", False),
    ]
    assert changes[2].worse == pytest.approx(1.3, rel=1e-2)
    assert "REGRESSION" in changes[2].words()
    assert not any(c.regression for c in changes_since(base, slower, tolerance_percent=40))
    slower["results"][1]["launches_p50_ms"] = [0.7, 1.9, 1.3, 1.0, 1.6]  # as slow, but who knows
    assert not any(c.regression for c in changes_since(base, slower))
    slower["results"][0]["peak_rss_bytes"] *= 2
    assert [c.what for c in changes_since(base, slower) if c.regression] == ["peak memory"]


def test_a_baseline_of_something_else_is_refused(document: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"

    def refused(text: str, content: str) -> None:
        file.write_text(content)
        with pytest.raises(InputError, match=text):
            changes_since(read_baseline(file), document)

    refused("is not valid JSON", "{")
    refused("is no baseline", "[]")
    refused("is no baseline", json.dumps({**document, "results": [{"path": "x"}]}))
    refused("is of another machine: Z80", json.dumps({**document, "environment": {"cpu": "Z80", "flags": []}}))
    other = [{**r, "threads": 7} for r in document["results"]]
    refused("nothing comparable", json.dumps({**document, "results": other}))
    refused("is no baseline", json.dumps({**document, "results": [{**document["results"][0], "engine_key": []}]}))
    with pytest.raises(InputError, match="nothing comparable"):
        require_comparable(document, [INT8], BenchConfig(threads=7))
    require_comparable(document, [INT8], BenchConfig())
    with pytest.raises(InputError, match="cannot be read"):
        read_baseline(tmp_path / "none.json")


def test_the_command_compares_writes_its_page_and_exits_1_on_a_regression(
    document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline, page = tmp_path / "baseline.json", tmp_path / "page.html"
    for r in document["results"]:
        r["launches_p50_ms"] = [v / 100 for v in r["launches_p50_ms"]]
    baseline.write_text(json.dumps(document))
    arguments = ["bench", str(INT8), "--quick", "--runs", "70", "--baseline", str(baseline)]
    assert run([*arguments, "--json", "--html", str(page)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["baseline"]["changes"][0]["regression"] is True
    assert "REGRESSION" in page.read_text()
    assert run(["bench", str(INT8), "--baseline", str(tmp_path / "none.json")]) == 2
    assert run(["bench", str(INT8), "--tolerance", "3"]) == 2
    assert run(["bench", str(INT8), "--quick", "--html", str(tmp_path / "no" / "page.html")]) == 2
