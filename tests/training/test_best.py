from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from qdeploy.training.best import Best
from qdeploy.training.learner import Score
from qdeploy.training.recipes import config_from_recipe
from qdeploy.training.run import within_error
from qdeploy.training.schedule import constants_of


@pytest.mark.parametrize(("latest", "kept"), [(False, 1), (True, 2)])
def test_where_all_images_are_trained_on_the_latest_weights_are_kept(latest: bool, kept: int) -> None:
    best = Best(1000, within_error=False, latest=latest)
    for epoch, top1 in enumerate((90.0, 40.0), 1):
        best.offer(nn.Linear(1, 1), Score(loss=1.0, top1=top1, top5=99.0), epoch, "raw")
    assert (best.epoch, best.highest) == (kept, 90.0)


@pytest.mark.parametrize(
    ("recipe", "fields", "wide"),
    [
        ("small", {}, True),
        ("qonstraint-5.9", {}, False),
        ("small", {"best_epoch": "highest"}, False),
        ("qonstraint-5.9", {"best_epoch": "within-error"}, True),
    ],
)
def test_whose_weights_are_kept(recipe: str, fields: dict[str, Any], wide: bool) -> None:
    assert within_error(config_from_recipe(recipe, **fields)) == wide


def test_the_ablation_changes_one_thing_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    ablation = importlib.import_module("ablation")
    for name in ("one-nano-a", "one-nano"):
        variants = {label: config_from_recipe(**f).to_dict() for label, f in ablation.SETS[name][2].items()}
        complete, driven = variants["paper, complete"], variants["paper, only the rate is driven"]
        for label, found in variants.items():
            if label.startswith("paper without "):
                (part,) = (k for k in found if found[k] != complete[k])
                assert label.endswith(part)
        cosine = variants["the same with one cosine to the same floor"]
        kept = (
            "swa",
            "reloads",
            "guard",
            "hardness",
            "augmentation",
            "mixup",
            "cutmix",
            "label_smoothing",
            "ema_decay",
        )
        assert all(cosine[k] == driven[k] for k in kept)
        assert cosine["min_lr"] == constants_of(config_from_recipe("qonstraint-5.9")).lr_min
