"""The range that a tensor's integers cover, from its histogram, by four methods.

A range is clipped where the few values beyond it cost less than the coarser steps they would force on all others.
Every range contains zero, which must stay exact: padding and ReLU make many zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from qdeploy.export.int8.histogram import Histogram

Range = tuple[float, float]

LEVELS = 256
PERCENT = 99.99
"""Percent of the values that lie inside the range of the method percentile."""
SHRINKS = tuple(np.linspace(1.0, 0.2, 33))
"""Ends of a range that are tried, as shares of the extreme."""
ROUNDS = 2
"""Searches of the upper end, then of the lower, each with the other fixed."""

Cost = Callable[[float, float], float]
Method = Callable[[Histogram, float, float, bool], Range]
"""Takes a histogram, its extremes (with zero between them) and whether the range is to be symmetric."""


def range_of(histogram: Histogram, method: str, symmetric: bool = False) -> Range:
    """Return the range of a tensor.

    Args:
        histogram: Histogram of the tensor's values on real images.
        method: A key of ``METHODS``: minmax, percentile, entropy (Kullback-Leibler divergence, as TensorRT's former
            calibrator), mse (mean squared error), or one that was added.
        symmetric: Whether the integers are symmetric about zero.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    return METHODS[method](histogram, low, high, symmetric) if histogram.limit else (low, high)


def mse(histogram: Histogram, span: Range) -> float:
    """Return the mean squared error of quantizing a tensor's values with a range."""
    counts = histogram.counts.astype(np.float64)
    return _mse_cost(histogram.centres, counts)(*span) / max(counts.sum(), 1.0)


def _minmax(histogram: Histogram, low: float, high: float, symmetric: bool) -> Range:
    return low, high


def _least_entropy(histogram: Histogram, low: float, high: float, symmetric: bool) -> Range:
    return _search(_entropy_cost(histogram), low, high, symmetric)


def _least_mse(histogram: Histogram, low: float, high: float, symmetric: bool) -> Range:
    used = histogram.counts.nonzero()[0]
    centres, counts = histogram.centres[used], histogram.counts[used].astype(np.float64)
    return _search(_mse_cost(centres, counts), low, high, symmetric)


def _percentile(histogram: Histogram, low: float, high: float, symmetric: bool) -> Range:
    share = histogram.counts.cumsum() / histogram.counts.sum()
    tail = (1 - PERCENT / 100) / 2
    width = 2 * histogram.limit / len(share)
    first, last = (int(np.searchsorted(share, at)) for at in (tail, 1 - tail))
    below = float(histogram.centres[first]) - width / 2
    above = float(histogram.centres[min(last, len(share) - 1)]) + width / 2
    low, high = max(low, min(below, 0.0)), min(high, max(above, 0.0))
    return (-max(-low, high), max(-low, high)) if symmetric else (low, high)


def _search(cost: Cost, low: float, high: float, symmetric: bool) -> Range:
    if symmetric:
        best = _best_end(high, lambda end: cost(-end, end))
        return -best, best
    extremes = low, high
    for _ in range(ROUNDS):
        high = _best_end(extremes[1], lambda end: cost(low, end))  # noqa: B023
        low = _best_end(extremes[0], lambda end: cost(end, high))  # noqa: B023
    return low, high


def _best_end(extreme: float, cost: Callable[[float], float]) -> float:
    """Return the share of an extreme that costs least: of every fourth share, then of those around the best."""
    if extreme == 0.0:
        return 0.0
    costs: dict[int, float] = {}

    def least(shares: Iterable[int]) -> int:
        costs.update((i, cost(SHRINKS[i] * extreme)) for i in shares if i not in costs and 0 <= i < len(SHRINKS))
        return min(costs, key=lambda i: (costs[i], i))

    coarse = least(range(0, len(SHRINKS), 4))
    return float(SHRINKS[least(range(coarse - 3, coarse + 4))] * extreme)


def _mse_cost(centres: NDArray[np.float64], counts: NDArray[np.float64]) -> Cost:
    at_zero = np.abs(centres) <= (centres[1] - centres[0] if len(centres) > 1 else 0.0)

    def cost(low: float, high: float) -> float:
        clipped = np.clip(centres, low, high)
        step = (high - low) / (LEVELS - 1)
        rounding = counts[(clipped == centres) & ~at_zero].sum() * step * step / 12  # zero itself is exact
        return float((counts * np.square(centres - clipped)).sum() + rounding)

    return cost


def _entropy_cost(histogram: Histogram) -> Cost:
    counts, centres = histogram.counts.astype(np.float64), histogram.centres

    def cost(low: float, high: float) -> float:
        inside = (centres >= low) & (centres <= high)
        first, end = int(inside.argmax()), len(inside) - int(inside[::-1].argmax())
        if not inside.any() or end - first < 2:
            return np.inf
        kept = counts[first:end]
        reference = kept.copy()
        reference[0] += counts[:first].sum()
        reference[-1] += counts[end:].sum()
        level = ((centres[first:end] - low) * ((LEVELS - 1) / (high - low)) + 0.5).astype(np.int64)
        mass = np.bincount(level, kept, minlength=LEVELS + 1)
        bins = np.bincount(level, kept > 0, minlength=LEVELS + 1)
        quantized = np.where(kept > 0, (mass / np.maximum(bins, 1))[level], 0.0)
        p, q = reference / reference.sum(), quantized / max(quantized.sum(), 1.0)
        seen = p > 0
        return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-9))).sum())

    return cost


METHODS: dict[str, Method] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "entropy": _least_entropy,
    "mse": _least_mse,
}
"""Every method by its name; what is added here is known to every export of this process."""
