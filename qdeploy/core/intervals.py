"""Confidence intervals of shares and paired differences, without numpy, whose import would slow a cold start."""

from __future__ import annotations

import math
from dataclasses import dataclass


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share in [0, 1] seen in n samples."""
    z = 1.959964
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Accuracy of one model minus another's on the same samples, in points of top-1."""

    points: float
    margin95: float
    """Half width of the 95 % interval, from the discordant pairs."""
    n: int


def paired_counts(lost: int, gained: int, n: int) -> PairedDifference:
    """Return the difference of two models that disagree about so many samples.

    Args:
        lost: Samples that only the old model gets right.
        gained: Samples that only the new one gets right.
        n: All samples.
    """
    discordant, net = lost + gained, gained - lost
    # Agresti and Min: half a pair more in each cell, so that no discordant pair does not mean no doubt
    margin = 1.959964 * math.sqrt(discordant + 1 - net**2 / (n + 2)) / (n + 2)
    return PairedDifference(points=100 * net / n, margin95=100 * margin, n=n)


def mcnemar_p(lost: int, gained: int) -> float:
    """Return the exact two-sided p-value of McNemar's test.

    Args:
        lost: Samples that only the first of two models gets right.
        gained: Samples that only the second gets right.

    Returns:
        The probability of so uneven a split, or a more uneven one, if both models were equally good; 1 without any.
    """
    n, few = lost + gained, min(lost, gained)
    if n == 0:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(few + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))
