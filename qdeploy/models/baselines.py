"""Baselines from other libraries, trained from scratch: ``torchvision/NAME`` and ``timm/NAME``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from qdeploy.core.errors import InputError, MissingDependencyError, near_miss
from qdeploy.models.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """A classifier of another library, by its name there."""

    library: str
    """torchvision or timm."""
    name: str
    num_classes: int = 10
    input_size: int = 64
    """Height and width of the image in pixels."""

    def __post_init__(self) -> None:
        if self.library not in _BUILDERS:
            raise InputError(f"there is no library '{self.library}' of models; known: {', '.join(_BUILDERS)}")
        if self.num_classes < 1:
            raise InputError(f"a model needs at least 1 class, found num_classes={self.num_classes}")
        if self.input_size < 1:
            raise InputError(f"the input size must be positive, found {self.input_size}")

    @property
    def family(self) -> str:
        """The library's name."""
        return self.library

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> BaselineConfig:
        """Rebuild a configuration from ``to_dict``."""
        return cls(**fields)

    def build(self) -> Baseline:
        """Build a freshly initialised model.

        Raises:
            InputError: If the library has no such classifier, or it cannot take images of this size.
            MissingDependencyError: If the library is not installed.
        """
        return Baseline(self)


class Baseline(Classifier):
    """Another library's network behind our interface."""

    config: BaselineConfig

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.config = config
        _require_logits(config)
        self.network = _BUILDERS[config.library](config)

    def forward(self, image: Tensor) -> Tensor:
        """Classify normalised images ``[B, 3, S, S]``; the result is ``[B, K]``."""
        return self.network(image)


def _require_logits(config: BaselineConfig) -> None:
    """Build it and try a batch without memory or computing: whether the strides fit shows only in a forward pass."""
    size, full = config.input_size, f"{config.library}/{config.name}"
    try:
        with torch.device("meta"), torch.no_grad():
            logits = _BUILDERS[config.library](config).eval()(torch.empty(2, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{full} cannot take {size}x{size} images ({reason})", fix="give another input_size, e.g. 224"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, config.num_classes):
        raise InputError(f"{full} is no image classifier: it does not give one logit per class")


def _torchvision(config: BaselineConfig) -> nn.Module:
    models = _library("torchvision.models", "pip install 'qdeploy[baselines]'")
    known = models.list_models(module=models)
    if config.name not in known:
        if config.name in models.list_models():
            raise InputError(f"torchvision/{config.name} is no image classifier; give one such as torchvision/resnet18")
        raise InputError(f"torchvision has no model '{config.name}'{near_miss(config.name, known)}")
    options: dict[str, Any] = {}
    if config.name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    if config.name.startswith("vit_"):
        options = {"image_size": config.input_size}
    model: nn.Module = models.get_model(config.name, weights=None, num_classes=config.num_classes, **options)
    return model


def _timm(config: BaselineConfig) -> nn.Module:
    timm = _library("timm", "pip install timm")
    known = timm.list_models()
    if config.name not in known:
        raise InputError(f"timm has no model '{config.name}'{near_miss(config.name, known)}")
    options = {"pretrained": False, "num_classes": config.num_classes}
    try:  # transformers are built for one size, convolutional networks know no such option
        model: nn.Module = timm.create_model(config.name, **options, img_size=config.input_size)
    except TypeError:
        model = timm.create_model(config.name, **options)
    return model


def _library(name: str, install: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(f"the library {name.partition('.')[0]} is missing here: {install}") from error


_BUILDERS: dict[str, Callable[[BaselineConfig], nn.Module]] = {"torchvision": _torchvision, "timm": _timm}
