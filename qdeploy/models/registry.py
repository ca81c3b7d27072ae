"""Every model by its name: the one list that the command line, training and export read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from qdeploy.core.errors import InputError, near_miss
from qdeploy.models.qonstraint import Qonstraint, QonstraintConfig

PUBLISHED_CLASSES = 200
"""Number of classes at which the paper counts its parameters (Tiny ImageNet)."""

_WIDE = QonstraintConfig(dims=(128, 256, 512, 1024), depths=(2, 2, 4), fusion_dim=512, num_classes=PUBLISHED_CLASSES)
_NARROW = replace(_WIDE, dims=(64, 128, 256, 512), fusion_dim=256, head="sota")
_NANO = QonstraintConfig(
    dims=(16, 32, 64, 128),
    depths=(1, 1, 2),
    fusion_dim=64,
    num_classes=PUBLISHED_CLASSES,
    norm="foldable",
    recentre="running",
    drop_path=0.02,
    stem_dropout=0.0,
    fusion_dropout=0.0,
)
_MICRO = replace(_NANO, dims=(32, 64, 128, 256), depths=(1, 2, 3), fusion_dim=128)


def _deployable(name: str, config: QonstraintConfig) -> dict[str, QonstraintConfig]:
    aggressive = replace(config, stem="aggressive")
    return {
        name: config,
        f"{name}-r": replace(config, act="relu"),
        f"{name}-a": aggressive,
        f"{name}-ar": replace(aggressive, act="relu"),
    }


MODELS: dict[str, QonstraintConfig] = {
    **_deployable("nano", _NANO),
    **_deployable("micro", _MICRO),
    "qonstraint-5.5": replace(_NARROW, norm="batchnorm"),
    "qonstraint-5.6": replace(_WIDE, head="sota", norm="batchnorm"),
    "qonstraint-5.9-gap": _WIDE,
    "qonstraint-5.9-sota": replace(_WIDE, head="sota"),
    "qonstraint-5.9-gap-deep": replace(_WIDE, depths=(2, 3, 5)),
    "qonstraint-5.9-sota-deep": replace(_WIDE, depths=(2, 3, 5), head="sota"),
    "qonstraint-5.9-aggressive": replace(_WIDE, head="sota", stem="aggressive"),
    "qonstraint-5.9-lighter": replace(_NARROW, depths=(3, 4, 5)),
    "qonstraint-5.9-heavier": replace(_NARROW, depths=(3, 5, 6)),
    "qonstraint-5.9-heaviest": replace(_WIDE, depths=(4, 4, 6), head="sota"),
}


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """One row of ``qdeploy models``."""

    name: str
    family: str
    params: int
    macs: int
    """Multiply-accumulates of one image, counted by PyTorch's flop counter on the training form."""
    input_size: int
    num_classes: int


def model_config(name: str, num_classes: int) -> QonstraintConfig:
    """Look a configuration up by name and set its number of classes.

    Raises:
        InputError: If there is no such model; the nearest names are suggested.
    """
    if name not in MODELS:
        raise InputError(f"there is no model named '{name}'{near_miss(name, MODELS)}; `qdeploy models` lists all")
    return replace(MODELS[name], num_classes=num_classes)


def create_model(name: str, num_classes: int) -> Qonstraint:
    """Build a freshly initialised model by name."""
    return Qonstraint(model_config(name, num_classes))


@cache
def summarise(name: str, num_classes: int = PUBLISHED_CLASSES) -> ModelSummary:
    """Count a model's parameters and multiply-accumulates without allocating it."""
    config = model_config(name, num_classes)
    with torch.device("meta"):
        model = Qonstraint(config).eval()
        image = torch.empty(1, 3, config.input_size, config.input_size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(image)
    return ModelSummary(
        name=name,
        family="qonstraint",
        params=sum(p.numel() for p in model.parameters()),
        macs=counter.get_total_flops() // 2,
        input_size=config.input_size,
        num_classes=num_classes,
    )
