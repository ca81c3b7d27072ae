"""Every model by its name: the one list that the command line, training and export read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn

from qdeploy.core.errors import InputError, near_miss
from qdeploy.models.baselines import BaselineConfig
from qdeploy.models.classifier import Classifier, ModelConfig
from qdeploy.models.mobilevit import MobileVitConfig
from qdeploy.models.operators import ATTENTIONS, CONVOLUTIONS, FUSIONS
from qdeploy.models.qonstraint import QonstraintConfig

PUBLISHED_CLASSES = 200
"""Number of classes at which the Qonstraint paper counts its parameters (Tiny ImageNet)."""

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


QONSTRAINTS: dict[str, QonstraintConfig] = {
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
_GRID = {
    f"mobilevit-{conv}-{attention}-{fusion}": MobileVitConfig(conv=conv, attention=attention, fusion=fusion)
    for conv in CONVOLUTIONS
    for attention in ATTENTIONS
    for fusion in FUSIONS
}
GRID = tuple(_GRID)
"""The 36 names of the MobileViT grid; its thesis counts parameters at 10 classes (CIFAR-10)."""

MODELS: dict[str, QonstraintConfig | MobileVitConfig] = {**QONSTRAINTS, **_GRID}
"""Each model of ours, at its published number of classes and at 64 pixels."""

FAMILIES: dict[str, type[QonstraintConfig] | type[MobileVitConfig] | type[BaselineConfig]] = {
    "qonstraint": QonstraintConfig,
    "mobilevit": MobileVitConfig,
    "torchvision": BaselineConfig,
    "timm": BaselineConfig,
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


def model_config(name: str, num_classes: int | None = None, input_size: int = 0) -> ModelConfig:
    """Look a configuration up by name.

    Args:
        name: A key of ``MODELS``, or ``torchvision/NAME`` or ``timm/NAME``.
        num_classes: Length of the logits; by default the published one.
        input_size: Height and width of the image in pixels; 0 for the model's own.

    Raises:
        InputError: If there is no such model (the nearest names are suggested), or the size does not fit it.
    """
    library, slash, rest = name.partition("/")
    if slash and FAMILIES.get(library) is BaselineConfig:
        config: Any = BaselineConfig(library=library, name=rest)
    elif name in MODELS:
        config = MODELS[name]
    else:
        raise InputError(
            f"there is no model named '{name}'{near_miss(name, MODELS)}; `qdeploy models` lists all, and "
            "torchvision/NAME and timm/NAME work too"
        )
    changes = {} if num_classes is None else {"num_classes": num_classes}
    changed: ModelConfig = replace(config, **changes, **({"input_size": input_size} if input_size else {}))
    return changed


def create_model(name: str, num_classes: int, input_size: int = 0) -> Classifier:
    """Build a freshly initialised model by name."""
    return model_config(name, num_classes, input_size).build()


def model_from_record(family: str, config: dict[str, Any]) -> Classifier:
    """Build the model that a run's record or a card describes, with weights of its own.

    Raises:
        InputError: If its family is unknown.
        KeyError, TypeError: If its configuration lacks something.
    """
    if family not in FAMILIES:
        raise InputError(f"there is no family of models '{family}'; known: {', '.join(FAMILIES)}")
    return FAMILIES[family].from_dict(config).build()


@cache
def summarise(name: str, num_classes: int | None = None, input_size: int = 0) -> ModelSummary:
    """Count a model's parameters and multiply-accumulates without allocating it."""
    config = model_config(name, num_classes, input_size)
    with torch.device("meta"):
        model = config.build()
    params, macs = count(model, config.input_size)
    return ModelSummary(
        name=name,
        family=config.family,
        params=params,
        macs=macs,
        input_size=config.input_size,
        num_classes=config.num_classes,
    )


def count(model: nn.Module, input_size: int) -> tuple[int, int]:
    """Return the parameters, and the multiply-accumulates of one image, of a module on any device."""
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton: most commands count nothing

    device = next(model.parameters()).device
    image = torch.empty(1, 3, input_size, input_size, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(image)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2
