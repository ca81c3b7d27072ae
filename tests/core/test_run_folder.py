"""``run.json``: read back as it was written, by this version or an earlier one; what is damaged is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qdeploy.core.errors import InputError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.run_folder import RunRecord, RunResults, read_record, read_run

EARLIER: dict[str, Any] = {
    "schema": 2,
    "created": "2026-11-21T18:25:29+00:00",
    "config": {"model": "nano-ar", "recipe": "small", "epochs": 3, "clip_norm": 1.0, "swa": False},
    "device": "cpu",
    "amp": "off",
    "processes": 1,
    "model": {
        "name": "nano-ar",
        "family": "qonstraint",
        "params": 828542,
        "macs": 6497354,
        "input_size": 64,
        "num_classes": 3,
        "config": {"width": 16, "heads": ["a", "r"]},
    },
    "labels": ["apple", "leaf", "stone"],
    "preprocessing": Preprocessing().to_dict(),
    "dataset": {
        "name": "photos",
        "sha256": "ab" * 32,
        "source": "photos",
        "images": {"train": 30, "val": 6, "test": 6},
        "problems": 0,
    },
    "git": {"commit": "cd" * 20, "dirty": True},
    "environment": {"cpu": "a cpu", "cores": 2, "versions": {"qdeploy": "0.1.0"}},
    "interrupted": False,
    "results": {
        "epochs": 3,
        "best_epoch": 2,
        "best_weights": "average",
        "val_top1": 66.5,
        "val_top5": 100.0,
        "test_top1": 50.0,
        "seconds": 12.5,
        "images_per_s": 400.0,
        "data_share": 0.125,
        "peak_memory_bytes": 500000000,
    },
    "weights": "best-e3b0c442.safetensors",
    "weights_sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
}
"""As written before records had types; the weights are an empty file."""


def written(folder: Path, values: Any) -> Path:
    (folder / "run.json").write_text(json.dumps(values))
    (folder / "best-e3b0c442.safetensors").touch()
    return folder


def test_a_record_of_an_earlier_version_opens_and_is_written_the_same(tmp_path: Path) -> None:
    record, weights = read_run(written(tmp_path, EARLIER))
    assert weights == b""
    assert (record.model.family, record.dataset.images["val"], record.labels[2]) == ("qonstraint", 6, "stone")
    assert record.preprocessing == Preprocessing()
    assert record.results is not None
    assert record.results.best_weights == "average"
    record.save(tmp_path)
    assert json.loads((tmp_path / "run.json").read_text()) == EARLIER
    assert list(json.loads((tmp_path / "run.json").read_text())) == list(EARLIER)


def test_the_earliest_records_do_not_name_the_device(tmp_path: Path) -> None:
    written(tmp_path, {k: v for k, v in EARLIER.items() if k != "device"})
    assert read_run(tmp_path)[0].device is None


def test_what_is_not_there_yet_is_left_out(tmp_path: Path) -> None:
    record = RunRecord.from_dict(EARLIER)
    new = replace(record, interrupted=True, results=None, weights=None, weights_sha256=None, git=None)
    new.save(tmp_path / "run")
    assert set(EARLIER) - set(new.to_dict()) == {"results", "weights", "weights_sha256"}
    assert read_record(tmp_path / "run") == new
    with pytest.raises(InputError, match="has no weights yet; go on with its training by `resume`"):
        read_run(tmp_path / "run")


def test_results_are_of_their_types() -> None:
    results = RunRecord.from_dict(EARLIER).results
    assert isinstance(results, RunResults)
    assert vars(results) == {**EARLIER["results"], "epoch_s": None, "chance": None}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"labels": None}, "'labels' is no list"),
        ({"labels": [1, 2]}, "'labels.0' is no str"),
        ({"model": {"name": "nano"}}, "'model.family' is missing"),
        ({"dataset": {**EARLIER["dataset"], "images": [1]}}, "'dataset.images' is no dict"),
        ({"results": {**EARLIER["results"], "val_top1": "high"}}, "'results.val_top1' is no float"),
        ({"preprocessing": {}}, "the preprocessing rules are incomplete"),
        ({"preprocessing": 3}, "'preprocessing' is missing or no dict"),
        ({"interrupted": "no"}, "'interrupted' is no bool"),
        ({"weights_sha256": "00"}, "is not the file that run.json describes"),
        ({"weights": "../../none"}, "none cannot be read: No such file"),
    ],
)
def test_damage_is_named(change: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=text):
        read_run(written(tmp_path, {**EARLIER, **change}))


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run: it has no run.json"):
        read_run(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_run(tmp_path / "none")
    with pytest.raises(InputError, match="is damaged: it is no JSON object"):
        read_run(written(tmp_path, [1]))
