"""The GPU campaign's real script, as a dry run: on the CPU, at a tiny size."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_campaign.sh"
PIECES = ("speed", "data", "accuracy", "precision", "presets", "engines", "ablation-recipes", "ablation-without")


def environment(**more: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("CAMPAIGN_")}
    return {**inherited, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **more}


def campaign(*arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**more), timeout=300)


def read(out: Path, piece: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((out / f"{piece}.json").read_text())
    return document


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, own_cache: Path) -> Path:
    """The results of a whole dry run."""
    folder = tmp_path_factory.mktemp("campaign") / "results"
    done = campaign("--dry-run", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for piece in PIECES:
        assert f"\n{piece}: complete after" in f"\n{done.stdout}"
    return folder


@pytest.mark.slow
def test_every_piece_leaves_its_result(out: Path) -> None:
    assert {path.stem for path in out.glob("*.json")} == set(PIECES)
    for piece in PIECES:
        document = read(out, piece)
        assert document["state"] == "complete, dry run"
        assert document["command"] == f"benchmarks/gpu_campaign.sh --dry-run OUT {piece}"
        assert document["date"]
        assert {"python", "torch", "numpy", "qdeploy"} <= set(document["environment"]["versions"])
        assert document["environment"]["gpu"] is None
        assert document["rows"]
        assert not any("failed" in row for row in document["rows"])


@pytest.mark.slow
def test_results_say_n_and_spread(out: Path) -> None:
    (speed,) = read(out, "speed")["rows"]
    for phase in ("phase_1", "phase_2"):
        spread = speed["step_ms"][phase]
        assert spread["n"] == 2
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    assert speed["params"] > 800_000
    assert speed["peak_process_bytes"] > 1e8
    data = read(out, "data")["rows"]
    assert [row["name"] for row in data] == ["phase_1", "phase_2"]
    assert all(row["step_ms"]["n"] == row["step_on_one_batch_ms"]["n"] == 6 for row in data)
    (accuracy,) = read(out, "accuracy")["rows"]
    low, high = accuracy["test_top1_ci95"]
    assert low < accuracy["test_top1"] < high
    assert accuracy["n"] == 1000
    assert len(accuracy["log"]) == accuracy["epoch_train_s"]["n"] == 1
    (variant,) = read(out, "ablation-recipes")["variants"].values()
    assert variant["n"] == len(variant["test_top1"]) == 1


@pytest.mark.slow
def test_what_a_machine_cannot_do_is_a_result(out: Path) -> None:
    precision = {row["name"]: row for row in read(out, "precision")["rows"]}
    assert "needs a CUDA device" in precision["amp fp16, channels last, eager"]["unavailable"]
    assert precision["amp off, channels first, eager"]["step_ms"]["n"] == 2
    for row in read(out, "engines")["rows"]:
        assert row.get("engine_bytes") or "unavailable" in row


@pytest.mark.slow
def test_a_second_call_repeats_nothing(out: Path) -> None:
    before = times(out)
    done = campaign("--dry-run", out)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"{piece}: done before" for piece in PIECES]
    assert times(out) == before


@pytest.mark.slow
def test_a_piece_whose_time_was_up_goes_on(tmp_path: Path) -> None:
    cut = campaign("--dry-run", tmp_path, "precision", CAMPAIGN_LIMIT_S="0")
    assert cut.returncode == 1
    assert "precision: not complete" in cut.stdout
    first = read(tmp_path, "precision")
    assert first["state"] == "begun, dry run"
    assert len(first["rows"]) == 1

    done = campaign("--dry-run", tmp_path, "precision")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{first['rows'][0]['name']}: was there" in done.stdout
    document = read(tmp_path, "precision")
    assert document["state"] == "complete, dry run"
    assert document["rows"][0] == first["rows"][0]
    assert len(document["rows"]) == 7
    assert document["calls"] == 2


@pytest.mark.slow
def test_a_begun_piece_of_another_machine_begins_anew(out: Path, tmp_path: Path) -> None:
    begun = read(out, "data")
    begun["state"] = "begun, dry run"
    begun["environment"]["versions"]["torch"] = "0.1"
    (tmp_path / "data.json").write_text(json.dumps(begun))
    done = campaign("--dry-run", tmp_path, "data")
    assert "begins anew" in done.stdout
    assert "was there" not in done.stdout
    assert read(tmp_path, "data")["calls"] == 1


@pytest.mark.slow
def test_an_interrupted_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    process = subprocess.Popen(
        ["bash", str(SCRIPT), "--dry-run", str(tmp_path), "accuracy", "speed"],
        env=environment(CAMPAIGN_EPOCHS="3"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch   1/3"):
            break
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 130, stdout + stderr
    assert "accuracy: interrupted" in stdout
    assert "qdeploy: interrupted" in stderr  # it was asked to end, not killed
    assert "Traceback" not in stderr
    assert read(tmp_path, "accuracy")["state"] == "begun, dry run"
    assert not (tmp_path / "speed.json").exists()
    (checkpoints,) = tmp_path.glob("runs/*/checkpoints")
    assert list(checkpoints.glob("*.safetensors"))

    done = campaign("--dry-run", tmp_path, "accuracy", CAMPAIGN_EPOCHS="3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch   1/3" not in done.stderr
    document = read(tmp_path, "accuracy")
    assert len(document["rows"][0]["log"]) == 3
    assert document["calls"] == 2


@pytest.mark.slow
def test_a_missing_library_is_one_line_and_the_next_piece_is_tried(tmp_path: Path) -> None:
    hiding = tmp_path / "hiding"
    hiding.mkdir()
    (hiding / "safetensors.py").write_text("raise ImportError('not here', name='safetensors')\n")
    done = campaign("--dry-run", tmp_path / "out", "speed", "data", PYTHONPATH=str(hiding))
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["the library safetensors is missing here: pip install 'qdeploy[train]'"] * 2
    assert [line.partition(" after")[0] for line in done.stdout.splitlines()] == ["speed: failed", "data: failed"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["speed"], "the folder comes first, found 'speed'"),
        (["--dry-ran"], "found '--dry-ran'"),
        (["{tmp}", "sped"], "there is no piece 'sped'; known: speed data"),
    ],
)
def test_wrong_usage_does_nothing(arguments: list[str], says: str, tmp_path: Path) -> None:
    done = campaign(*(text.format(tmp=tmp_path / "out") for text in arguments))
    assert done.returncode == 2
    assert says in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_a_gpu_a_real_run_fails_and_says_so(tmp_path: Path) -> None:
    done = campaign(tmp_path / "out", "speed", CUDA_VISIBLE_DEVICES="", CAMPAIGN_WORK=str(tmp_path / "work"))
    assert done.returncode == 1
    assert done.stdout.startswith("speed: there is no CUDA device\n")
