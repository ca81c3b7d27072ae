"""Comparison of two models' latencies, paired in time: how many times faster, with a 95 % interval, or only noise.

Latencies of neighbouring runs are alike, and a model opened anew has another place in memory and with it another speed.
So the runs are cut into stretches (in ``bench`` the model is opened anew for each), every stretch gives one ratio, and
the interval is Student's over those few: batch means. Resampling single rounds as if they were independent gives
intervals that are too narrow.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import InputError

STRETCHES = 10


class Speed(str, Enum):
    """What a comparison finds."""

    FASTER = "faster"
    SLOWER = "slower"
    NO_DIFFERENCE = "no difference beyond noise"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How many times faster one model is than another, from blocks measured in turn."""

    model: str
    against: str
    ratio: float
    """Time of the other divided by that of this one; above 1 this one is faster."""
    ci95: tuple[float, float]
    """95 % interval of ``ratio``; it holds for all comparisons of a report together."""
    finding: Speed
    """faster, slower, or no difference beyond noise."""

    def words(self) -> str:
        """Return the finding as a sentence."""
        low, high = self.ci95
        if self.finding is Speed.NO_DIFFERENCE:
            return (
                f"{self.model} and {self.against}: {self.finding.value} (ratio {low:.3f} to {high:.3f}, 95 % interval)"
            )
        ratio = self.ratio
        if self.finding is Speed.SLOWER:
            ratio, low, high = 1 / ratio, 1 / high, 1 / low
        digits = 1 if ratio >= 2 and high - low >= 0.05 else 2 if low >= 1.01 else 3
        return (
            f"{self.model} is {ratio:.{digits}f}x {self.finding.value} than {self.against} "
            f"(95 % interval {low:.{digits}f} to {high:.{digits}f})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return its part of the JSON document."""
        return {**asdict(self), "words": self.words()}


def compare(
    model: str,
    against: str,
    new: Sequence[Sequence[float]],
    old: Sequence[Sequence[float]],
    comparisons: int = 1,
    launches: Sequence[int] | None = None,
) -> Comparison:
    """Compare two models by their rounds.

    Args:
        model: Name of the first.
        against: Name of the second.
        new: Rounds of latencies of the first.
        old: Rounds of the second model, measured in turn with them.
        comparisons: How many are made; each gets that part of the 5 % of error (Bonferroni), so that twenty equal
            models give no false winner either.
        launches: How many rounds were done each time that the models were opened; these are the stretches. Default:
            ten stretches of equal length.

    Raises:
        InputError: If there are fewer than two rounds.
    """
    if len(new) < 2:
        raise InputError("a comparison needs at least two rounds of runs")
    logs = np.log([statistics.median(o) / statistics.median(n) for n, o in zip(new, old, strict=True)])
    parts = np.split(logs, np.cumsum(launches)[:-1]) if launches else np.array_split(logs, min(STRETCHES, len(logs)))
    stretches = [float(np.median(part)) for part in parts]
    centre, half = mean_and_margin(stretches, 0.05 / comparisons)
    low, high = math.exp(centre - half), math.exp(centre + half)
    finding = Speed.FASTER if low > 1.0 else Speed.SLOWER if high < 1.0 else Speed.NO_DIFFERENCE
    return Comparison(model=model, against=against, ratio=math.exp(centre), ci95=(low, high), finding=finding)


def mean_and_margin(values: Sequence[float], error: float = 0.05) -> tuple[float, float]:
    """Return the mean of two or more values and half the width of its Student interval."""
    mean = statistics.fmean(values)
    return mean, student(1 - error / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


@lru_cache(maxsize=64)
def student(probability: float, freedom: int) -> float:
    """Return the quantile of Student's distribution, for a probability in [0.5, 1)."""
    # t = sqrt(freedom) * tan(a) turns the density into cos(a) ** (freedom - 1) over a finite range
    angles: NDArray[np.float64] = np.linspace(-math.pi / 2, math.pi / 2, 200_001)
    share = np.cumsum(np.cos(angles) ** (freedom - 1))
    return math.sqrt(freedom) * math.tan(float(np.interp(probability, share / share[-1], angles)))
