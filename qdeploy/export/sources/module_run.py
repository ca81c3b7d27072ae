"""The trial of a user's module: is it a function from one image to the logits of its classes?"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qdeploy.core.errors import InputError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.progress import Note
from qdeploy.export.sources.torch_reason import agree, first_difference, first_not_finite, named, refusal
from qdeploy.models.own import are_probabilities

SAME = 1e-6
"""Largest difference of two runs on the same images, relative to the largest logit: none but that of threads."""
SAME_IN_BATCHES = 1e-4
"""Other sizes of a batch take other kernels, which round differently; a wrong batch axis is of the order of 1."""


def noise_pixels(count: int, size: int) -> NDArray[np.uint8]:
    """Return images of noise ``[N, S, S, 3]``, the same every time: dark, bright, dull and of full contrast in turn."""
    ends = np.array([(0, 256), (0, 64), (160, 256), (96, 160)])[np.arange(count) % 4]
    low, high = ends.T[:, :, None, None, None]
    return np.random.default_rng(0).integers(low, high, (count, size, size, 3), np.uint8)


def normalised(pixels_NSSC: NDArray[np.uint8], rules: Preprocessing) -> torch.Tensor:
    """Return images as a module takes them: float32 ``[N, 3, S, S]``, contiguous."""
    mean, std = torch.tensor(rules.mean), torch.tensor(rules.std)
    return ((torch.from_numpy(pixels_NSSC).float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def tried(model: nn.Module, rules: Preprocessing, classes: int, note: Note) -> nn.Module:
    """Run a module on two images, and return what gives their logits: it, one of its answers, or its logarithm.

    Raises:
        InputError: If it does not take them, gives no logits ``[2, K]`` or none that are finite, or answers differently
            when it is asked again or for one image alone.
    """
    images = normalised(noise_pixels(2, rules.size), rules)
    with plain() as seen:
        answer = _first_answer(model, images, note)
        model = _giving_logits(model, answer, classes, note)
        logits = _logits(model, images, classes)
        if not torch.isfinite(logits).all():
            found = first_not_finite(model, images)
            place = f", first in {named(*found)}" if found else ""
            raise InputError(f"the module gives values that are not finite for an image of noise{place}")
        if are_probabilities(logits):
            note("the module gives probabilities; logits are their logarithm")
            model = Logarithm(model).eval()
            logits = _logits(model, images, classes)
        _require_same_again(model, images, logits, classes)
        _require_same_alone(model, images, logits, classes)
    if seen.autocast:
        note("the module's autocast is left out: it is exported in float32")
    return model


class Seen:
    """What a module was seen to do while it ran."""

    autocast = False


@contextmanager
def plain() -> Iterator[Seen]:
    """Let modules of this thread run in float32, uncompiled and without gradients; random numbers are given back."""
    seen, thread = Seen(), threading.get_ident()
    kind = torch.amp.autocast_mode.autocast
    enter: Callable[[Any], Any] = kind.__enter__

    def switched_off(self: Any) -> Any:
        if threading.get_ident() == thread and self._enabled:
            seen.autocast = True
            self._enabled = False
        return enter(self)

    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.callback(setattr, kind, "__enter__", enter)
        kind.__enter__ = switched_off  # type: ignore[method-assign]
        yield seen


def _first_answer(model: nn.Module, images: torch.Tensor, note: Note) -> object:
    """Run a module, in float32 if it takes no float32 images as it is."""
    try:
        return model(images.clone())
    except SystemExit as error:
        raise InputError("the module ends the program when it runs", fix="take the call of exit out of it") from error
    except Exception as error:  # whatever a user's module raises
        shape = list(images.shape)
        found = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()} - {"float32"}
        if not found:
            raise refusal(f"the module cannot take {shape} images", error, model) from error
        model.float()
        try:
            answer = model(images.clone())
        except Exception as again:
            raise refusal(f"the module cannot take {shape} images in float32", again, model) from again
        note(f"the module's {', '.join(sorted(found))} weights are exported in float32")
        return answer


class Picked(nn.Module):
    """A module of several answers, of which one are the logits."""

    def __init__(self, model: nn.Module, key: str | int) -> None:
        super().__init__()
        self.model = model
        self.key = key

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits alone."""
        answer: Any = self.model(image)
        picked: torch.Tensor = answer[self.key] if hasattr(answer, "__getitem__") else vars(answer)[self.key]
        return picked


class Logarithm(nn.Module):
    """A module that gives probabilities, with logits in their place: their softmax would be other probabilities."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits whose softmax is what the module gives."""
        answer: torch.Tensor = self.model(image)
        return answer.clamp(min=torch.finfo(torch.float32).tiny).log()


def _parts(answer: object) -> dict[str | int, object]:
    if isinstance(answer, (tuple, list)):
        return dict(enumerate(answer))
    return dict(answer if isinstance(answer, Mapping) else getattr(answer, "__dict__", {}))


def _giving_logits(model: nn.Module, answer: object, classes: int, note: Note) -> nn.Module:
    if isinstance(answer, torch.Tensor):
        return model
    parts = _parts(answer)
    fitting = [k for k, v in parts.items() if isinstance(v, torch.Tensor) and list(v.shape) == [2, classes]]
    key = "logits" if "logits" in fitting else fitting[0] if len(fitting) == 1 else None
    if key is None:
        inside = ", ".join(f"{k}: {_described(v)}" for k, v in parts.items())
        found = f"{type(answer).__name__}{f' ({inside})' if inside else ''}"
        fix = "wrap it in a module that returns the logits alone"
        raise InputError(f"the module must give logits [2, {classes}] for 2 images", found=found, fix=fix)
    note(f"the logits are {key!r} of the {type(answer).__name__} that the module returns")
    return Picked(model, key).eval()


def _described(value: object) -> str:
    return str(list(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__


def _logits(model: nn.Module, images: torch.Tensor, classes: int) -> torch.Tensor:
    """Return a module's logits of some images."""
    count = len(images)
    try:
        answer = model(images.clone())
    except Exception as error:  # whatever a user's module raises
        raise refusal(f"the module cannot take {list(images.shape)} images", error, model) from error
    found = _described(answer)
    if isinstance(answer, torch.Tensor) and answer.shape == (count, classes):
        if answer.dtype == torch.float32:
            return answer.detach()
        found = str(answer.dtype).removeprefix("torch.")
        raise InputError("the module must give float32 logits", found=found, fix="return logits.float()")
    few = f"{count} image{'s' if count > 1 else ''}"
    fix = "flatten(1) keeps the batch where squeeze() loses it" if count == 1 else ""
    raise InputError(f"the module must give logits [{count}, {classes}] for {few}", found=found, fix=fix)


def _require_same_again(model: nn.Module, images: torch.Tensor, logits: torch.Tensor, classes: int) -> None:
    """Refuse a module that answers differently when it is asked again."""
    drawn, before = torch.get_rng_state(), _state(model)
    again = _logits(model, images, classes)
    if agree(logits, again, SAME):
        return
    changed = [k for k, v in _state(model).items() if k not in before or not torch.equal(v, before[k])]
    found = first_difference(model, images, images, SAME)
    place = named(*found) if found else named("", model)
    if not torch.equal(drawn, torch.get_rng_state()):
        why, fix = "draws random numbers in evaluation", "F.dropout needs training=self.training"
    elif changed:
        why, fix = f"changes its own '{changed[0]}' at every call", "keep in the module what must not change"
    else:
        why, fix = "computes something else every time", ""
    raise InputError(f"the module answers the same images differently when asked twice: {place} {why}", fix=fix)


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in (*model.named_buffers(), *model.named_parameters())}


def _require_same_alone(model: nn.Module, images: torch.Tensor, logits: torch.Tensor, classes: int) -> None:
    """Refuse a module whose answer for an image depends on the other images of its batch."""
    alone = _logits(model, images[:1], classes)
    if agree(logits[:1], alone, SAME_IN_BATCHES):
        return
    found = first_difference(model, images, images[:1], SAME_IN_BATCHES)
    place = named(*found) if found else named("", model)
    fix = "a BatchNorm needs its running statistics" if "BatchNorm" in place else ""
    raise InputError(f"what the module answers for an image depends on the others in its batch: {place}", fix=fix)
