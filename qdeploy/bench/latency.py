"""Summaries of a series of latencies: percentiles, histogram, drift."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from qdeploy.core.metrics import MIN_SAMPLES, percentile

BINS = 60


def latency_summary(samples: Sequence[float]) -> dict[str, float | None]:
    """Return p50, p90, p95, p99, mean and standard deviation; None where there are too few samples."""
    tails = {f"p{p}": percentile(samples, p) if len(samples) >= n else None for p, n in MIN_SAMPLES.items()}
    return {
        "p50": percentile(samples, 50),
        **tails,
        "mean": statistics.fmean(samples),
        "std": statistics.stdev(samples) if len(samples) > 1 else 0.0,
    }


def histogram(samples: Sequence[float]) -> dict[str, Any]:
    """Return counts over sixty equal bins from the least to p99, and how many lie above."""
    low, high = min(samples), percentile(samples, 99)
    high = max(high, low * 1.001)
    counts, _ = np.histogram(samples, bins=BINS, range=(low, high))
    return {"low": low, "high": high, "counts": counts.tolist(), "above": len(samples) - int(counts.sum())}


def drift_percent(samples: Sequence[float]) -> float:
    """Return by how many per cent the median of the last third differs from that of the first."""
    third = max(1, len(samples) // 3)
    return 100 * (statistics.median(samples[-third:]) / statistics.median(samples[:third]) - 1)
