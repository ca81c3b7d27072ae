"""A user's own network by its place in Python: ``package.module:Class``, found from the current folder on."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qdeploy.core.errors import InputError, near_miss
from qdeploy.models.classifier import Classifier

FAMILY = "own"
_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class OwnConfig:
    """A class or function that builds a network, and what it is called with."""

    path: str
    """``package.module:Class``."""
    num_classes: int = 10
    """Given as ``num_classes`` if it takes that, else as its first argument."""
    input_size: int = 64
    """Height and width of the image in pixels."""
    arguments: dict[str, str] = field(default_factory=dict)
    """Other arguments by name, as text: Python's numbers, tuples and truth values, else a string."""

    def __post_init__(self) -> None:
        if not _PATH.fullmatch(self.path):
            raise InputError("an own model is written package.module:Class", found=f"'{self.path}'")

    @property
    def family(self) -> str:
        """The registry's name of such models."""
        return FAMILY

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> OwnConfig:
        """Rebuild a configuration from ``to_dict``."""
        return cls(**fields)

    def build(self) -> OwnModel:
        """Build a freshly initialised network and try it with two images.

        Raises:
            InputError: If it cannot be found, called or trained, or does not give one logit per class.
        """
        return OwnModel(self)


class OwnModel(Classifier):
    """A user's network behind our interface."""

    config: OwnConfig

    def __init__(self, config: OwnConfig) -> None:
        super().__init__()
        self.config = config
        self.network = _built(config)
        _require_logits(self.network, config)

    def forward(self, image: Tensor) -> Tensor:
        """Classify normalised images ``[B, 3, S, S]``; the result is ``[B, K]``."""
        return self.network(image)


def is_own(name: str) -> bool:
    """Tell whether a model's name is a place in Python."""
    return ":" in name


def _built(config: OwnConfig) -> nn.Module:
    target = _found(config.path)
    given = {name: _value(text) for name, text in config.arguments.items()}
    known: dict[str, inspect.Parameter] = {}
    with suppress(TypeError, ValueError):  # what is written in C may have no signature
        known = dict(inspect.signature(target).parameters)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in known.values())
    for name in given:
        if not takes_all and name not in known:
            raise InputError(f"{config.path} takes no argument '{name}'{near_miss(name, known)}")
    by_name = takes_all or "num_classes" in known
    try:
        network = target(num_classes=config.num_classes, **given) if by_name else target(config.num_classes, **given)
    except (Exception, SystemExit) as error:  # of the user's code, which may be a program
        raise InputError(
            f"{config.path} could not be built: {_reason(error)}",
            fix="it is called with num_classes, or with the number of classes alone",
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{config.path} gives no torch.nn.Module", found=type(network).__name__)
    if not any(True for _ in network.parameters()):
        raise InputError(f"{config.path} has no parameters to train")
    return network


def _found(path: str) -> Callable[..., Any]:
    """Import what a path names; modules of the current folder are found."""
    module_name, _, name = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # it stays: a network may import more when it is built
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # of the user's code, which may be a program
        raise InputError(f"the module {module_name} cannot be imported: {_reason(error)}") from error
    found = getattr(module, name, None)
    if not callable(found):
        names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise InputError(f"the module {module_name} has no class or function '{name}'{near_miss(name, names)}")
    return found


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "on": True, "false": False, "off": False}.get(text.lower(), text)


def _require_logits(network: nn.Module, config: OwnConfig) -> None:
    size, training = config.input_size, network.training
    device = next(network.parameters()).device
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = network.eval()(torch.zeros(2, 3, size, size, device=device))
    except (Exception, SystemExit) as error:  # of the user's code, which may be a program
        raise InputError(f"{config.path} cannot take {size}x{size} images: {_reason(error)}") from error
    finally:
        network.train(training)
    if not isinstance(logits, Tensor) or logits.shape != (2, config.num_classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"{config.path} does not give one logit per class: 2 images, {config.num_classes} classes", found=found
        )
    if are_probabilities(logits):
        raise InputError(
            f"{config.path} gives probabilities, which sum to 1 for each image, and training needs logits",
            fix="leave out its softmax",
        )


def are_probabilities(answers: Tensor) -> bool:
    """Tell whether rows ``[B, K]`` of at least two classes are at least 0 and sum to 1."""
    sums = answers.double().sum(1)
    return bool(answers.shape[1] > 1 and answers.min() >= 0 and (sums - 1).abs().max() <= 1e-3)


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return 'it ends the program, as a script does; keep what it runs behind `if __name__ == "__main__":`'
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
