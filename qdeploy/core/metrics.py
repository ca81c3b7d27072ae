"""Numbers that decide: accuracy, agreement, signal-to-noise, percentiles and their intervals.

Array names: N samples, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

MIN_SAMPLES = {90: 64, 95: 130, 99: 662}
"""Fewest samples that let a percentile be stated with 99 % confidence (MLPerf LoadGen, early stopping)."""


def topk_percent(logits_NK: Floats, labels_N: NDArray[np.int64], k: int) -> float:
    """Give the share of samples, in percent, whose label is among the k largest logits."""
    k = min(k, logits_NK.shape[1])
    best = np.argpartition(-logits_NK, k - 1, axis=1)[:, :k]
    return float((best == labels_N[:, None]).any(axis=1).mean() * 100.0)


def agreement(a_NK: Floats, b_NK: Floats) -> float:
    """Give the share of samples in [0, 1] for which both have the same largest logit."""
    return float((a_NK.argmax(axis=1) == b_NK.argmax(axis=1)).mean())


def sqnr_db(reference: Floats, other: Floats) -> float:
    """Give the signal-to-quantization-noise ratio in decibels; infinite if both are equal."""
    noise = float(np.square(reference.astype(np.float64) - other).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    return math.inf if noise == 0.0 else 10.0 * math.log10(max(signal, 1e-30) / noise)


def percentile(samples: Sequence[float], percent: float) -> float:
    """Give a percentile by the nearest-rank rule: always one of the samples."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(percent / 100.0 * len(ordered)) - 1)]


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Give the 95 % Wilson interval of a share in [0, 1] seen in n samples."""
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


def paired_difference(new_NK: Floats, old_NK: Floats, labels_N: NDArray[np.int64]) -> PairedDifference:
    """Compare two models' predictions sample by sample."""
    n = len(labels_N)
    delta = (new_NK.argmax(1) == labels_N).astype(np.int64) - (old_NK.argmax(1) == labels_N)
    discordant, net = int((delta != 0).sum()), int(delta.sum())
    # Agresti and Min: half a pair more in each cell, so that no discordant pair does not mean no doubt
    margin = 1.959964 * math.sqrt(discordant + 1 - net**2 / (n + 2)) / (n + 2)
    return PairedDifference(points=100 * net / n, margin95=100 * margin, n=n)
