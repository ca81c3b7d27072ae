from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from qdeploy.cli.main import run
from qdeploy.core.errors import InputError
from qdeploy.training import config_from_recipe, train_seeds
from qdeploy.training.seeds import spread
from tests.conftest import MakeImages


@pytest.mark.slow
def test_seeds_are_runs_of_their_own_and_their_mean(
    image_folder: MakeImages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = str(image_folder(count=12)), tmp_path / "run"
    options = ["--model", "nano-ar", "--epochs", "1", "--batch-size", "8", "--device", "cpu", "--deterministic"]
    assert run(["train", root, *options, "--seed", "5", "--seeds", "2", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [Path(r["run"]).name for r in found["runs"]] == ["run-seed5", "run-seed6"]
    records = [json.loads((Path(r["run"]) / "run.json").read_text()) for r in found["runs"]]
    assert [r["config"]["seed"] for r in records] == [5, 6]
    assert all(r["config"]["deterministic"] for r in records)
    tests = [r["test_top1"] for r in found["runs"]]
    assert found["test_top1"] == {
        "n": 2, "mean": statistics.fmean(tests), "std": statistics.stdev(tests), "values": tests,
    }  # fmt: skip
    assert run(["train", root, *options, "--seeds", "2", "--out", str(tmp_path / "other")]) == 0
    assert "test top-1 of 2 seeds: " in capsys.readouterr().out


def test_what_stands_in_the_way_is_found_before_the_first_run(tmp_path: Path) -> None:
    (tmp_path / "run-seed1").mkdir()
    (tmp_path / "run-seed1" / "x").touch()
    with pytest.raises(InputError, match="run-seed1 already holds files"):
        train_seeds(config_from_recipe("small"), 2, tmp_path / "run")
    for config, count, words in (
        (config_from_recipe("small"), 0, "`seeds` must be between 1 and 100"),
        (config_from_recipe("small", seed=2**32 - 1), 2, "there are no 2 seeds from"),
    ):
        with pytest.raises(InputError, match=words):
            train_seeds(config, count, tmp_path / "other")
    assert [p.name for p in tmp_path.iterdir()] == ["run-seed1"]


def test_one_run_has_no_deviation() -> None:
    assert spread([3.0]).std is None
    assert spread([1.0, 3.0]).std == pytest.approx(2**0.5)
