"""What happens inside a trial's process, run in this one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qdeploy import training
from qdeploy.core.artifact import read_artifact
from qdeploy.core.errors import InputError
from qdeploy.export.graph import parity
from qdeploy.native.source import memory_of
from qdeploy.study import trial
from qdeploy.study.trial import Spec, outcome
from tests.conftest import MakeImages


def spec(kind: str, folder: Path, data: Path, **fields: Any) -> Spec:
    settings = {"batch_size": 8, "amp": "off"}
    return Spec(
        kind=kind, model="nano-ar", folder=str(folder), data=str(data), settings=settings, device="cpu", **fields
    )


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (InputError("no such\n   thing"), "no such thing"),
        (RuntimeError("\nshapes differ\nmore lines"), "RuntimeError: shapes differ"),
        (MemoryError(), "MemoryError: "),
        (AssertionError("x" * 900), "AssertionError: " + "x" * 484),
    ],
)
def test_what_is_raised_becomes_a_line(
    error: Exception, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(training, "train", fail)
    assert outcome(spec("train", tmp_path, tmp_path)) == {"error": text.strip()}


def test_a_probe_times_a_few_steps_and_predicts_an_epoch(image_folder: MakeImages, tmp_path: Path) -> None:
    data = image_folder(classes=("a", "b", "c"), count=14)
    found = outcome(spec("probe", tmp_path, data, epochs=50))
    images = found["images"]
    assert sum(images.values()) == 42
    assert 0 < found["epoch_s"] < 60
    assert 0 < found["test_s"] < found["epoch_s"]
    assert found["stepping_s"] < 60


def test_a_probe_of_a_run_that_ends_first(image_folder: MakeImages, tmp_path: Path) -> None:
    found = outcome(spec("probe", tmp_path, image_folder(count=12), epochs=1))
    assert found["epoch_s"] > 0


class Watched(trial.Stopwatch):
    """Sees steps of a second, of which the first two take ten."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("qdeploy.study.trial.time.perf_counter", lambda: self.now)
        super().__init__()
        self.images = {"train": 80, "val": 16, "test": 40}


def test_a_probe_worked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps of 8 images an epoch; an evaluated image costs 1 s / 8 / 3: 10 + 2 * 16 / 24 s, test 40 / 24 s."""
    watch = Watched(monkeypatch)
    for _ in range(trial.WARM_STEPS):
        watch.now += 10.0
        watch.batch(0, 1, 10)
    watch.now += 1.0
    watch.batch(0, 3, 10)
    watch.now += 1.0
    with pytest.raises(trial.EnoughError):  # slow steps: two are enough
        watch.batch(0, 4, 10)
    found = watch.result()
    assert found.epoch_s == pytest.approx(10 + 2 * 16 / 24)
    assert found.test_s == pytest.approx(40 / 24)
    assert found.stepping_s == pytest.approx(22.0)


@pytest.mark.slow
def test_a_rejected_int8_leaves_the_fp32_file(
    image_folder: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = image_folder(classes=("a", "b", "c"), count=14)
    monkeypatch.setattr(parity, "INT8_MIN_SQNR_DB", 500.0)
    found = outcome(spec("train", tmp_path, data))
    assert (found["epochs"], found["family"], found["input_size"]) == (1, "qonstraint", 64)
    exported = outcome(spec("export", tmp_path, data))
    assert list(exported["artifacts"]) == ["fp32"]
    assert "parity failed" in exported["int8_error"]
    assert sorted(p.name for p in (tmp_path / "export").glob("*.onnx")) == ["model.fp32.onnx"]
    (tmp_path / "export-0.json").write_text(json.dumps(exported))
    monkeypatch.setattr(trial, "MEASURE_RUNS", 50)
    measured = outcome(spec("measure", tmp_path, data))
    assert measured["int8_speedup"] is None
    assert measured["artifacts"]["fp32"]["n"] == 50


@pytest.mark.slow
def test_under_limits_int8_is_made_for_a_microcontroller(
    image_folder: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = image_folder(classes=("a", "b", "c"), count=14)
    outcome(spec("train", tmp_path, data))
    exported = outcome(spec("export", tmp_path, data, target="cortex-m", on_integers=True))
    found = exported["artifacts"]["int8"]
    artifact = read_artifact(tmp_path / "export" / found["file"])
    assert (artifact.card.target, artifact.card.float_layers) == ("cortex-m", ())
    needed = memory_of(artifact)
    assert (found["flash_bytes"], found["ram_bytes"]) == (needed["whole_flash_bytes"], needed["whole_ram_bytes"])
    (tmp_path / "export-0.json").write_text(json.dumps(exported))
    monkeypatch.setattr(trial, "MEASURE_RUNS", 50)
    assert outcome(spec("measure", tmp_path, data))["artifacts"]["int8"]["n"] == 50
