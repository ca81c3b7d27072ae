"""The GPU campaign's real script, as a dry run: on the CPU, at a tiny size."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_campaign.sh"
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("campaign")]
PIECES = (
    "speed", "data", "accuracy", "precision", "presets", "tiny-imagenet", "cifar-10", "engines", "ablation-recipes",
    "ablation-without",
)  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("CAMPAIGN_")}
    return {**inherited, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **more}


def campaign(*arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**more), timeout=1200)


def read(out: Path, piece: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((out / f"{piece}.json").read_text())
    return document


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """A dry run that was begun, interrupted and then run as a whole: torch starts once for each of these."""

    out: Path
    begun: dict[str, Any]
    """What the precision piece left when its time was up."""
    interrupted: subprocess.CompletedProcess[str]
    interrupted_document: dict[str, Any]
    left_by_the_interrupt: set[str]
    """Names of results, and the endings of checkpoints."""
    whole: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a call in which the time of a piece was up after its first row."""
    folder = tmp_path_factory.mktemp("campaign") / "results"
    done = campaign("--dry-run", folder, "precision", CAMPAIGN_LIMIT_S="0")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "precision: not complete" in done.stdout
    return folder


@pytest.fixture(scope="module")
def dry_run(cut: Path, tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """A whole dry run, of which some pieces were begun before."""
    out = shutil.copytree(cut, tmp_path_factory.mktemp("campaign") / "results")
    begun = read(out, "precision")
    foreign = {**begun, "environment": {**begun["environment"], "cpu": "another"}, "calls": 5}
    foreign["rows"] = [{**begun["rows"][0], "name": name} for name in ("phase_1", "phase_2")]
    (out / "data.json").write_text(json.dumps(foreign))
    interrupted = interrupt_training(out)
    document, left = read(out, "accuracy"), {*times(out), *(p.suffix for p in out.glob("runs/*/checkpoints/*"))}
    whole = campaign("--dry-run", out, CAMPAIGN_EPOCHS="3")
    return Campaign(
        out=out,
        begun=begun,
        interrupted=interrupted,
        interrupted_document=document,
        left_by_the_interrupt=left,
        whole=whole,
    )


@pytest.fixture
def out(dry_run: Campaign) -> Path:
    assert dry_run.whole.returncode == 0, dry_run.whole.stdout + dry_run.whole.stderr
    return dry_run.out


def interrupt_training(out: Path) -> subprocess.CompletedProcess[str]:
    """Run two pieces, and press Ctrl-C after the first of three epochs of the first."""
    process = subprocess.Popen(
        ["bash", str(SCRIPT), "--dry-run", str(out), "accuracy", "speed"],
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
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.mark.slow
def test_every_piece_leaves_its_result(dry_run: Campaign, out: Path) -> None:
    for piece in PIECES:
        assert f"\n{piece}: complete after" in f"\n{dry_run.whole.stdout}"
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
    assert len(accuracy["log"]) == accuracy["epoch_train_s"]["n"] == 3
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


def test_a_piece_whose_time_was_up_goes_on(cut: Path, tmp_path: Path) -> None:
    first = read(cut, "precision")
    assert first["state"] == "begun, dry run"
    assert len(first["rows"]) == 1

    out = shutil.copytree(cut, tmp_path / "results")
    done = campaign("--dry-run", out, "precision")
    assert done.returncode == 0, done.stdout + done.stderr
    check_continued(read(out, "precision"), first, done.stdout)


def check_continued(document: dict[str, Any], first: dict[str, Any], printed: str) -> None:
    assert f"{first['rows'][0]['name']}: was there" in printed
    assert document["state"] == "complete, dry run"
    assert document["rows"][0] == first["rows"][0]
    assert len(document["rows"]) == 7
    assert document["calls"] == 2


@pytest.mark.slow
def test_a_whole_run_takes_up_what_was_begun(dry_run: Campaign, out: Path) -> None:
    check_continued(read(out, "precision"), dry_run.begun, dry_run.whole.stdout)


@pytest.mark.slow
def test_a_begun_piece_of_another_machine_begins_anew(dry_run: Campaign, out: Path) -> None:
    printed = [line for line in dry_run.whole.stdout.splitlines() if line.startswith("data: ")]
    assert "begins anew" in printed[0]
    assert not any("was there" in line for line in printed)
    assert read(out, "data")["calls"] == 1


@pytest.mark.slow
def test_an_interrupted_training_goes_on_from_its_checkpoint(dry_run: Campaign, out: Path) -> None:
    interrupted = dry_run.interrupted
    assert interrupted.returncode == 130, interrupted
    assert "accuracy: interrupted" in interrupted.stdout
    assert "qdeploy: interrupted" in interrupted.stderr  # it was asked to end, not killed
    assert "Traceback" not in interrupted.stderr
    assert dry_run.interrupted_document["state"] == "begun, dry run"
    assert dry_run.left_by_the_interrupt >= {"precision.json", "data.json", "accuracy.json", ".safetensors"}
    assert "speed.json" not in dry_run.left_by_the_interrupt

    accuracy = dry_run.whole.stderr.split("epoch   3/3")[0]
    assert "epoch   2/3" in accuracy
    assert "epoch   1/3" not in accuracy
    document = read(out, "accuracy")
    assert len(document["rows"][0]["log"]) == 3
    assert document["calls"] == 2


def test_a_missing_library_is_one_line_and_the_next_piece_is_tried(tmp_path: Path) -> None:
    hiding = tmp_path / "hiding"
    hiding.mkdir()
    (hiding / "torch.py").write_text("raise ImportError('not here', name='torch')\n")
    done = campaign("--dry-run", tmp_path / "out", "speed", "data", PYTHONPATH=str(hiding))
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["the library torch is missing here: pip install 'qdeploy[train]'"] * 2
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
