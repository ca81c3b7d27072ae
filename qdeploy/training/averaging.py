"""Averaged weights: the exponential moving average of every step and the equal average of late epochs (SWA)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]


class ExponentialAverage:
    """A twin of a model whose weights and statistics follow it: ``twin += (1 - decay) (model - twin)``."""

    def __init__(self, model: nn.Module) -> None:
        self.twin = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float) -> None:
        """Follow the model after an optimizer step; a decay of 0 copies it."""
        pairs = zip(self.twin.state_dict().values(), model.state_dict().values(), strict=True)
        averages: list[Tensor] = []
        news: list[Tensor] = []
        for mine, new in pairs:
            if mine.is_floating_point():
                averages.append(mine)
                news.append(new)
            else:  # counters of BatchNorm
                mine.copy_(new)
        torch._foreach_lerp_(averages, news, 1.0 - decay)


class StochasticWeightAverage:
    """The equal average of a model's weights at the ends of epochs, in main memory."""

    def __init__(self) -> None:
        self.weights: Weights = {}
        self.count = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Add the model's present weights."""
        self.count += 1
        for name, new in on_cpu(model.state_dict()).items():
            if name not in self.weights or not new.is_floating_point():
                self.weights[name] = new
            else:
                self.weights[name].lerp_(new, 1.0 / self.count)


def on_cpu(weights: Weights) -> Weights:
    """Copy weights into main memory."""
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in weights.items()}


@torch.no_grad()
def refresh_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Recompute the running statistics of every norm as the equal average over some batches of images.

    Averaged weights have seen no image: the statistics averaged with them belong to other weights. Dropout and drop
    path stay off.
    """
    norms = [m for m in model.modules() if hasattr(m, "running_mean")]
    with _collecting(model, norms):
        for i, image in enumerate(batches):
            for norm in norms:
                setattr(norm, "momentum", 1.0 / (i + 1))  # noqa: B010  (a module's attributes are typed as tensors)
            model(image)


@contextmanager
def _collecting(model: nn.Module, norms: list[nn.Module]) -> Iterator[None]:
    was_training, momenta = model.training, [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.training = True
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            setattr(norm, "momentum", momentum)  # noqa: B010
        model.train(was_training)
