"""Successive halving as a plain rule: which models train on, and for how many epochs.

Rungs: every model is trained for ``e`` epochs, those kept for about ``3 e``, those kept of these for about ``9 e``.
Each rung trains anew with a complete schedule, since a cosine that is cut short says little about one that is not.
Kept in a rung are the best third by validation top-1, and the models on its front against MACs, so that small models
are not all dropped in favour of large ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ETA = 3
MOST_RUNGS = 3
EXTRA_KEPT = 2
"""How many models a plan expects on the front beyond the best third."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What halving looks at."""

    name: str
    val_top1: float
    macs: int


@dataclass(frozen=True, kw_only=True)
class Load:
    """Predicted seconds of a model's trial, alone in its slot."""

    start_s: float
    """Start of the process, reading the data, the last evaluation."""
    epoch_s: float


def kept(scores: Sequence[Score]) -> list[str]:
    """Return the models that go on to the next rung, in the order given.

    The best third (rounded up) by validation top-1, the cheaper of two equal ones first; and every model for which
    no other is at least as accurate with at most its MACs, and better in one of the two.
    """
    ranked = sorted(scores, key=lambda s: (-s.val_top1, s.macs, s.name))
    best = {s.name for s in ranked[: math.ceil(len(ranked) / ETA)]}
    return [s.name for s in scores if s.name in best or not any(_dominates(other, s) for other in scores)]


def _dominates(a: Score, b: Score) -> bool:
    at_least = a.val_top1 >= b.val_top1 and a.macs <= b.macs
    return at_least and (a.val_top1 > b.val_top1 or a.macs < b.macs)


def expected_kept(count: int) -> int:
    """Return the number of models that a plan expects to go on."""
    return min(count, math.ceil(count / ETA) + EXTRA_KEPT)


def most_rungs(count: int) -> int:
    """Return the number of rungs that so many models are worth: with a third of fewer than three nothing is gained."""
    return min(MOST_RUNGS, 1 + int(math.log(max(1, count), ETA) + 1e-9))


def plan(
    loads: Sequence[Load], seconds: float, *, most_epochs: int, rungs: int, slots: int = 1, above: int = 0
) -> tuple[int, ...]:
    """Choose the epochs of this rung and the next ones, as many as fit into the time.

    If all models can be trained for ``most_epochs``, that is done in one rung. Else the plan has as many of the
    ``rungs`` as fit, with the largest ``e`` in ``e``, ``3 e``, ``9 e`` that fits and does not exceed ``most_epochs``.

    Args:
        loads: Predicted seconds of each model of this rung. Later rungs are expected to hold average ones.
        seconds: What training may take.
        most_epochs: Largest number of epochs of any rung.
        rungs: The most rungs.
        slots: Trials at a time.
        above: The epochs of the rung before; a plan must have more.

    Returns:
        The epochs of each rung, or nothing if not even one short rung fits.
    """
    if most_epochs > above and predicted_s(loads, (most_epochs,), slots) <= seconds:
        return (most_epochs,)
    for count in range(rungs, 0, -1):
        longest = ETA ** (count - 1)
        found: tuple[int, ...] = ()
        for e in range(above + 1, most_epochs // longest + 1):
            epochs = tuple(e * ETA**i for i in range(count))
            if predicted_s(loads, epochs, slots) > seconds:
                break
            found = epochs
        if found:
            return found
    return ()


def predicted_s(loads: Sequence[Load], epochs: Sequence[int], slots: int = 1) -> float:
    """Predict the seconds of a rung and those after it.

    Args:
        loads: Predicted seconds of each model of the first rung.
        epochs: Epochs of each rung.
        slots: Trials at a time.
    """
    total, current = 0.0, list(loads)
    for i, count in enumerate(epochs):
        if i:
            current = [_average(loads)] * expected_kept(len(current))
        total += wall_s([load.start_s + count * load.epoch_s for load in current], slots)
    return total


def wall_s(seconds: Sequence[float], slots: int) -> float:
    """Bound the time in which ``slots`` workers finish tasks taken in any order (Graham, 1969)."""
    return sum(seconds) / slots + (1 - 1 / slots) * max(seconds, default=0.0)


def _average(loads: Sequence[Load]) -> Load:
    count = max(1, len(loads))
    return Load(start_s=sum(x.start_s for x in loads) / count, epoch_s=sum(x.epoch_s for x in loads) / count)
