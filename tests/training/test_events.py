from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from qdeploy.core.errors import MissingDependencyError
from qdeploy.training import config_from_recipe, train
from tests.conftest import MakeImages


def test_tensorboard_has_the_numbers_of_the_log(image_folder: MakeImages, tmp_path: Path) -> None:
    config = config_from_recipe(
        "small", data=str(image_folder(count=12)), model="nano-ar", epochs=2, batch_size=8, tensorboard=True
    )
    train(config, tmp_path / "run")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    rows = list(csv.DictReader((tmp_path / "run" / "log.csv").read_text().splitlines()))
    assert set(events.Tags()["scalars"]) == set(rows[0]) - {"epoch", "events"}  # those are words
    for name in ("val_top1", "train_loss", "lr"):
        found = [(e.step, e.value) for e in events.Scalars(name)]
        expected = [(int(r["epoch"]), float(r[name])) for r in rows]
        assert [s for s, _ in found] == [s for s, _ in expected]
        assert [v for _, v in found] == pytest.approx([v for _, v in expected], rel=1e-4, abs=1e-6)


def test_without_tensorboard_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'qdeploy\[tensorboard\]'"):
        train(config_from_recipe("small", tensorboard=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()
