"""A forward pass that leaves no trace: what the choice of threads is measured with."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class _TooLongError(Exception):
    """Ends a rehearsal."""


def rehearse(model: M, forward: Callable[[M], object], limit_s: float) -> None:
    """Compute a forward pass on a copy of a model, and forget it: weights, statistics and random states stay.

    It is given up between two layers once it has taken ``limit_s`` seconds.

    Args:
        model: The model.
        forward: Computes something with the copy, which is in training mode.
        limit_s: Seconds.
    """
    begin = time.perf_counter()

    def look(*_: object) -> None:
        if time.perf_counter() - begin > limit_s:
            raise _TooLongError

    twin = copy.deepcopy(model).train()
    for module in twin.modules():
        module.register_forward_pre_hook(look)
    with torch.random.fork_rng(devices=[]), suppress(_TooLongError):
        forward(twin)
