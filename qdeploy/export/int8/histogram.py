"""The histogram of a tensor's values, collected batch by batch in constant memory.

The extremes are those of every value. The histogram takes at most ``SAMPLE`` values of a batch, evenly spread over it
from a place that moves: a hundred images give some hundred thousand of each tensor, and counting all of them would
cost four times as long for the same ranges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BINS = 4096
"""Bins of equal width over [-limit, limit]: at least four per level of 256, however lopsided the values are."""
SAMPLE = 16_384
Counts = NDArray[np.int64]


def _no_counts() -> Counts:
    return np.zeros(BINS, np.int64)


@dataclass(kw_only=True)
class Histogram:
    """Extremes and value counts of one tensor."""

    low: float = math.inf
    high: float = -math.inf
    limit: float = 0.0
    """A power of two that no value exceeds; when one does, it doubles and neighbouring bins are merged."""
    counts: Counts = field(default_factory=_no_counts)
    batches: int = 0

    def add(self, values: NDArray[np.float32]) -> None:
        """Count a batch of values, of any shape; one that is not finite widens the extremes to infinity."""
        flat = values.reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            self.low, self.high = -math.inf, math.inf
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._reach(max(-low, high))
        stride = max(1, flat.size // SAMPLE) | 1  # odd: an even one may always meet the same channel
        sample = flat[self.batches % stride :: stride]
        self.batches += 1
        if self.limit:
            share = sample.astype(np.float64) / self.limit  # in float32 the factor itself may be beyond its range
            place = ((share + 1.0) * (BINS / 2)).astype(np.int32)
            self.counts += np.bincount(np.minimum(place, BINS - 1), minlength=BINS)

    def _reach(self, magnitude: float) -> None:
        if magnitude <= self.limit or magnitude == 0:
            return
        new = 2.0 ** math.ceil(math.log2(magnitude))
        if self.limit:
            factor = round(new / self.limit)
            self.counts = _spread(self.counts, factor)
        self.limit = new

    @property
    def is_finite(self) -> bool:
        """Whether there were values, all of them finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middle of each bin."""
        return (np.arange(BINS, dtype=np.float64) + 0.5) * (2 * self.limit / BINS) - self.limit

    def __add__(self, other: Histogram) -> Histogram:
        """Return the histogram of both."""
        total = Histogram(low=min(self.low, other.low), high=max(self.high, other.high))
        total.limit = max(self.limit, other.limit)
        for one in (self, other):
            if one.limit:
                total.counts = total.counts + _spread(one.counts, round(total.limit / one.limit))
        total.batches = self.batches + other.batches
        return total


def _spread(counts: Counts, factor: int) -> Counts:
    """Return the counts of a histogram whose limit is a power of two times as large."""
    if factor == 1:
        return counts
    wide = _no_counts()
    if factor >= BINS:
        middle = BINS // 2
        wide[middle - 1], wide[middle] = counts[:middle].sum(), counts[middle:].sum()
        return wide
    merged = counts.reshape(BINS // factor, factor).sum(axis=1)
    start = BINS // 2 - BINS // factor // 2
    wide[start : start + len(merged)] = merged
    return wide
