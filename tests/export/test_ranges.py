"""Histograms and ranges, against numpy and straight-line computations on the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import HistogramCollector

from qdeploy.export.int8.histogram import BINS, SAMPLE, Histogram
from qdeploy.export.int8.ranges import METHODS, mse, range_of

Values = NDArray[np.float32]


def seen(*batches: Values) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


def normal(count: int = 10_000, seed: int = 0) -> Values:
    return np.random.default_rng(seed).normal(0, 1, count).astype(np.float32)


def rounded(values: Values, low: float, high: float) -> float:
    """Quantize to 256 levels as a runtime does, and give the mean squared error."""
    scale = (high - low) / 255
    zero = round(-low / scale)
    integers = np.clip(np.round(values / scale) + zero, 0, 255)
    return float(np.mean((values - (integers - zero) * scale) ** 2))


def test_counts_are_those_of_numpy_whatever_the_order_of_magnitudes() -> None:
    small, large = normal(), 37.0 * normal(seed=1)
    histogram = seen(small, large, small)
    assert histogram.limit == 256.0
    expected = np.histogram(np.concatenate([small, large, small]), BINS, (-256, 256))[0]
    assert np.abs(np.cumsum(histogram.counts - expected)).max() <= 3  # values on an edge may fall to either side
    assert histogram.counts.sum() == 30_000


def test_a_sum_is_the_histogram_of_both_and_magnitudes_may_differ_wildly() -> None:
    near, far = seen(normal() * 1e-6), seen(normal(seed=1) * 1e6)
    total = near + far
    assert (total.low, total.high, total.limit) == (far.low, far.high, far.limit)
    assert total.counts.sum() == 20_000
    assert total.counts[BINS // 2 - 1 : BINS // 2 + 1].sum() >= 10_000
    assert np.array_equal((far + near).counts, total.counts)


def test_extremes_are_of_every_value_and_counts_of_a_sample() -> None:
    values = np.zeros(50 * SAMPLE, np.float32)
    values[123_457] = -3.0
    histogram = seen(values)
    assert (histogram.low, histogram.high) == (-3.0, 0.0)
    assert 0.9 * SAMPLE <= histogram.counts.sum() <= 1.1 * SAMPLE


@pytest.mark.parametrize("method", METHODS)
def test_every_range_holds_zero_and_stays_inside_the_extremes(method: str) -> None:
    for values in (normal(), normal() + 9, normal() - 9, np.zeros(9, np.float32)):
        low, high = range_of(seen(values), method)
        assert min(float(values.min()), 0) <= low <= 0 <= high <= max(float(values.max()), 0)
        low, high = range_of(seen(values), method, symmetric=True)
        assert low == -high


def test_percentile_is_numpy_s() -> None:
    values = normal(400_000).reshape(40, -1)
    found = range_of(seen(*values), "percentile")
    assert found == pytest.approx(tuple(np.percentile(values, [0.005, 99.995])), abs=0.1)


def test_mse_finds_the_range_of_least_error() -> None:
    values = np.concatenate([normal(200_000), np.asarray([16.0, -5.0], np.float32)])
    histogram = seen(*np.array_split(values, 20))
    low, high = range_of(histogram, "mse")
    ends = [(a, b) for a in np.linspace(-5, -2, 9) for b in np.linspace(16, 3, 14)]
    best = min(rounded(values, a, b) for a, b in ends)
    assert rounded(values, low, high) <= 1.1 * best
    assert rounded(values, low, high) < 0.8 * rounded(values, -5.0, 16.0)
    assert mse(histogram, (low, high)) == pytest.approx(rounded(values, low, high), rel=0.15)


def test_entropy_clips_lonely_outliers_and_leaves_a_uniform_tensor_whole() -> None:
    lonely = np.concatenate([normal(100_000), np.full(3, 50.0, np.float32)])
    _, high = range_of(seen(*np.array_split(lonely, 20)), "entropy")
    assert 2 < high < 26
    uniform = np.random.default_rng(0).uniform(0, 8, 16_000).astype(np.float32)
    assert range_of(seen(uniform), "entropy")[1] > 6


@pytest.mark.parametrize("kind", ["normal", "relu", "lonely"])
def test_entropy_agrees_with_onnxruntime_s_where_that_has_enough_bins(kind: str) -> None:
    """Its defaults, 128 bins for 128 levels, leave it one candidate; with as many bins as ours it searches."""
    values = normal(300_000)
    if kind == "relu":
        values = np.maximum(values, 0)
    if kind == "lonely":
        values = np.concatenate([values, np.full(5, 30.0, np.float32)])
    reach = float(np.abs(values).max())
    counts, edges = np.histogram(values, BINS + 1, (-reach, reach))
    tool = HistogramCollector("entropy", True, BINS, 256, 99.9, "same")
    theirs = tool.get_entropy_threshold((counts, edges, values.min(), values.max(), reach), 256)
    ours = range_of(seen(*np.array_split(values, 60)), "entropy")
    assert ours == pytest.approx([float(v) for v in theirs], rel=0.2, abs=0.1)
