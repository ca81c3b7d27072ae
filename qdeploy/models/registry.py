"""Every model by its name: the one list that the command line, training and export read."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, get_origin, get_type_hints

import torch
from torch import nn

from qdeploy.core.errors import InputError, near_miss
from qdeploy.models.baselines import BaselineConfig
from qdeploy.models.classifier import Classifier, ModelConfig
from qdeploy.models.mobilevit import MobileVitConfig
from qdeploy.models.operators import ATTENTIONS, CONVOLUTIONS, FUSIONS
from qdeploy.models.own import FAMILY as OWN
from qdeploy.models.own import OwnConfig, is_own
from qdeploy.models.published import NETWORKS, PublishedConfig
from qdeploy.models.qonstraint import QonstraintConfig

PUBLISHED_CLASSES = 200
"""Number of classes at which the Qonstraint paper counts its parameters (Tiny ImageNet)."""
LARGEST_FIELD = 100_000
"""Largest number in the configuration of a model that is rebuilt from a record."""
BYTES_OF_A_WEIGHT = 2
"""Least bytes of a saved parameter."""

_WIDE = QonstraintConfig(
    dims=(128, 256, 512, 1024),
    depths=(2, 2, 4),
    fusion_dim=512,
    num_classes=PUBLISHED_CLASSES,
    head_norm="layernorm",
    head_drop_path=0.1,
    clamps="throughout",
)
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
    head_norm="batchnorm",
)
_PICO = replace(_NANO, dims=(16, 24, 48, 48), fusion_dim=32, act="relu", stem="aggressive")
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
    "pico": _PICO,
    **_deployable("nano", _NANO),
    **_deployable("micro", _MICRO),
    "qonstraint-5.5": replace(_NARROW, norm="batchnorm", head_norm="batchnorm"),
    "qonstraint-5.6": replace(_WIDE, head="sota", norm="batchnorm", head_norm="batchnorm"),
    "qonstraint-5.9-gap": _WIDE,
    "qonstraint-5.9-sota": replace(_WIDE, head="sota"),
    "qonstraint-5.9-gap-deep": replace(_WIDE, depths=(2, 3, 5)),
    "qonstraint-5.9-sota-deep": replace(_WIDE, depths=(2, 3, 5), head="sota"),
    "qonstraint-5.9-gap-356": replace(_WIDE, depths=(3, 5, 6)),
    "qonstraint-5.9-gap-134": replace(_WIDE, depths=(1, 3, 4), stage_kernel=2),
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

MODELS: dict[str, QonstraintConfig | MobileVitConfig | PublishedConfig] = {
    **QONSTRAINTS,
    **_GRID,
    **{name: PublishedConfig(name=name) for name in NETWORKS},
}
"""Each model of ours, at its published number of classes and at 64 pixels."""

_OWN_ARGUMENTS = ("num_classes", "input_size", "library", "name")
"""Fields of configurations that are given in other ways."""

FAMILIES: dict[
    str,
    type[QonstraintConfig] | type[MobileVitConfig] | type[PublishedConfig] | type[BaselineConfig] | type[OwnConfig],
] = {
    "qonstraint": QonstraintConfig,
    "mobilevit": MobileVitConfig,
    "published": PublishedConfig,
    "torchvision": BaselineConfig,
    "timm": BaselineConfig,
    OWN: OwnConfig,
}


Changes = tuple[tuple[str, str], ...]
"""Fields of a model's configuration and their new values as text, such as ``(("depths", "1,2,3"),)``."""


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


def model_config(name: str, num_classes: int | None = None, input_size: int = 0, changes: Changes = ()) -> ModelConfig:
    """Look a configuration up by name.

    Args:
        name: A key of ``MODELS``, ``torchvision/NAME``, ``timm/NAME``, or ``package.module:Class``.
        num_classes: Length of the logits; by default the published one.
        input_size: Height and width of the image in pixels; 0 for the model's own.
        changes: Other fields to change.

    Raises:
        InputError: If there is no such model or field (the nearest names are suggested), or a value does not fit it.
    """
    library, slash, rest = name.partition("/")
    if slash and FAMILIES.get(library) is BaselineConfig:
        config: Any = BaselineConfig(library=library, name=rest)
    elif is_own(name):
        config = OwnConfig(path=name, arguments=dict(changes))
        changes = ()
    elif name in MODELS:
        config = MODELS[name]
    else:
        raise InputError(
            f"there is no model named '{name}'{near_miss(name, MODELS)}; `qdeploy models` lists all, and "
            "torchvision/NAME, timm/NAME and your own package.module:Class work too"
        )
    new = {field: _parsed(name, config, field, text) for field, text in changes}
    if num_classes is not None:
        new["num_classes"] = num_classes
    if input_size:
        new["input_size"] = input_size
    changed: ModelConfig = replace(config, **new)
    return changed


def _parsed(name: str, config: Any, field: str, text: str) -> Any:
    """Turn a text into a value of a configuration's field."""
    known = [f.name for f in fields(config) if f.name not in _OWN_ARGUMENTS]
    if field not in known:
        fix = f"known: {', '.join(known)}" if known else "only models of ours have fields that can be changed"
        raise InputError(f"model {name} has no field '{field}'{near_miss(field, known)}", fix=fix)
    kind = get_type_hints(type(config))[field]
    try:
        if get_origin(kind) is tuple:
            return tuple(int(part) for part in text.split(","))
        return kind(text) if kind in (int, float) else text
    except ValueError as error:
        shape = "whole numbers with commas between" if get_origin(kind) is tuple else "a number"
        raise InputError(f"model.{field} must be {shape}", found=f"'{text}'") from error


def create_model(name: str, num_classes: int, input_size: int = 0, changes: Changes = ()) -> Classifier:
    """Build a freshly initialised model by name."""
    return model_config(name, num_classes, input_size, changes).build()


def model_from_record(family: str, config: dict[str, Any]) -> Classifier:
    """Build the model that a run's record or a card describes, with weights of its own.

    Raises:
        InputError: If its family is unknown.
        KeyError, TypeError: If its configuration lacks something.
    """
    if family not in FAMILIES:
        raise InputError(f"there is no family of models '{family}'; known: {', '.join(FAMILIES)}")
    return FAMILIES[family].from_dict(config).build()


def _countable(family: str) -> AbstractContextManager[object]:
    """Return the context in which a model is built to be counted, without memory; a user's code may need numbers."""
    return nullcontext() if family == OWN else torch.device("meta")


def require_as_large(family: str, config: dict[str, Any], weights_bytes: int) -> None:
    """Check, before a model is built, that it has no more parameters than the file with its weights can hold.

    Raises:
        InputError: If it has, or a number of its configuration is none of a model's.
        KeyError, TypeError: If its configuration lacks something.
    """
    numbers = [n for value in config.values() for n in (value if isinstance(value, (list, tuple)) else (value,))]
    largest = max((n for n in numbers if type(n) in (int, float)), default=0)
    if largest > LARGEST_FIELD:
        raise InputError(f"its configuration has the number {largest:g}, and {LARGEST_FIELD:,} is the largest")
    with _countable(family):
        model = model_from_record(family, config)
    params = sum(p.numel() for p in model.parameters())
    if params > weights_bytes // BYTES_OF_A_WEIGHT:
        raise InputError(f"it is described with {params:,} parameters, and its weights have {weights_bytes:,} bytes")


@cache
def summarise(name: str, num_classes: int | None = None, input_size: int = 0, changes: Changes = ()) -> ModelSummary:
    """Count a model's parameters and multiply-accumulates without allocating it."""
    config = model_config(name, num_classes, input_size, changes)
    with _countable(config.family):
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


def count(model: nn.Module, input_size: int, image: torch.Tensor | None = None) -> tuple[int, int]:
    """Return the parameters, and the multiply-accumulates of one image, of a module on any device.

    Args:
        model: The module.
        input_size: Height and width of its images.
        image: What it is run on, ``[1, 3, S, S]``; by default zeros on the device of its weights.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton: most commands count nothing

    if image is None:
        image = torch.zeros(1, 3, input_size, input_size, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(image)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2
