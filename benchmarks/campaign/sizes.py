"""How much is measured and trained: in earnest, and in a dry run."""

from __future__ import annotations

from dataclasses import dataclass

from campaign.results import Row
from qdeploy.data.embedded import NAME as EMBEDDED
from qdeploy.models.registry import MODELS
from qdeploy.training import config_from_recipe
from qdeploy.training.recipes import RECIPES

REPORTED = "qonstraint-5.9-gap"
EPOCH_IMAGES = 80_000
PRESET_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured and trained."""

    models: dict[str, tuple[str, int | None]]
    """Of ``speed``: each model's recipe and batch size, None for the recipe's own."""
    reported: Row
    """What the recipe of the reported model is changed to."""
    images: int = EPOCH_IMAGES
    """In the random training set."""
    warmup: int = 20
    """Steps in each phase of the augmentation before any is timed."""
    groups: int = 6
    group_steps: int = 10
    compile: tuple[bool, ...] = (False, True)
    data: str = "fashion-mnist"
    accuracy_epochs: int = 40
    epochs: int = 40
    """Of ``presets``, and of the ablations where their variants are cut."""
    presets: tuple[str, ...] = ("nano", "nano-a", "micro")
    trained: Row
    """What further options the trained models get."""
    seeds: int = 3
    variants: int | None = None
    """Of an ablation; None for all."""


def recipe_of(model: str) -> tuple[str, int | None]:
    """The paper's recipe for a model, at the medium augmentation it reports; ours have their own."""
    for name in RECIPES:
        config = config_from_recipe(name)
        if config.model == model and config.augmentation == "mid":
            return name, None
    return "small", PRESET_BATCH


REAL = Size(models={name: recipe_of(name) for name in MODELS}, reported={}, trained={})
TINY = Size(
    models={"nano-ar": ("qonstraint-5.9", 4)},
    reported={"model": "nano-ar", "batch_size": 4},
    images=24,
    warmup=1,
    groups=2,
    group_steps=1,
    compile=(False,),
    data=EMBEDDED,
    accuracy_epochs=1,
    epochs=1,
    presets=("nano-ar",),
    trained={"model": "nano-ar", "batch_size": 64},
    seeds=1,
    variants=1,
)
