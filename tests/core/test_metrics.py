from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from qdeploy.core.intervals import mcnemar_p, wilson_interval
from qdeploy.core.metrics import (
    MIN_SAMPLES,
    agreement,
    confusion_of,
    label_ranks,
    macro_scores,
    paired_difference,
    percentile,
    sqnr_db,
    topk_percent,
)

LOGITS = np.array([[3, 2, 1], [1, 3, 2], [1, 2, 3], [3, 1, 2]], np.float32)


def test_topk() -> None:
    labels = np.array([0, 2, 2, 1])
    assert topk_percent(LOGITS, labels, 1) == 50.0
    assert topk_percent(LOGITS, labels, 2) == 75.0
    assert topk_percent(LOGITS, labels, 9) == 100.0


def test_of_equal_logits_the_lower_index_comes_first_and_nonsense_is_never_right() -> None:
    nan = float("nan")
    logits = np.array([[2, 2, 1], [2, 2, 1], [nan, 5, 1], [nan, 5, 1]], np.float32)
    assert label_ranks(logits, np.array([0, 1, 0, 1])).tolist() == [0, 1, 3, 1]


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (0, 6), (3, 3), (1, 9), (400, 480)])
def test_mcnemar_is_the_binomial_test(lost: int, gained: int) -> None:
    n, few = lost + gained, min(lost, gained)
    tail = float(Fraction(sum(math.comb(n, k) for k in range(few + 1)), 2**n))
    assert mcnemar_p(lost, gained) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)


def test_macro_scores_by_hand() -> None:
    """Of four classes the last is neither a label nor an answer, and the third an answer alone."""
    logits = np.eye(4, dtype=np.float32)[[0, 0, 1, 2, 1, 1]]
    confusion = confusion_of(logits, np.array([0, 0, 0, 0, 1, 1]))
    assert confusion.tolist() == [[2, 1, 1, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    found = macro_scores(confusion)
    assert found.precision == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found.recall == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found.f1 == pytest.approx((2 / 3 + 4 / 5 + 0) / 3)


def test_sqnr_of_a_tenth_is_twenty_decibels() -> None:
    reference = np.ones((2, 3), np.float32)
    assert sqnr_db(reference, reference * np.float32(1.1)) == pytest.approx(20.0, abs=1e-4)
    assert sqnr_db(reference, reference) == np.inf


def test_agreement() -> None:
    assert agreement(LOGITS, LOGITS) == 1.0
    assert agreement(LOGITS, LOGITS[::-1]) == 0.5


def test_percentile_is_one_of_the_samples() -> None:
    samples = list(range(1, 101))
    assert [percentile(samples, p) for p in (50, 90, 99, 100)] == [50, 90, 99, 100]
    assert percentile([7.0], 99) == 7.0


def test_min_samples_are_those_of_mlperf_loadgen() -> None:
    # Fewest n for which seeing no overrun leaves 1 % doubt about a percentile, margin included (MLPerf rules).
    assert MIN_SAMPLES[90] == 64
    assert MIN_SAMPLES[99] == 662


def test_wilson_interval_of_a_known_case() -> None:
    assert wilson_interval(0.9, 100) == pytest.approx((0.8256, 0.9448), abs=5e-4)  # textbook value


def test_paired_difference_counts_discordant_pairs() -> None:
    labels = np.zeros(1000, np.int64)
    old, new = np.zeros((1000, 2), np.float32), np.zeros((1000, 2), np.float32)
    old[:, 0] = new[:, 0] = 1
    new[:30] = [0, 1]  # 30 losses
    old[970:] = [0, 1]  # 30 gains
    difference = paired_difference(new, old, labels)
    assert difference.points == 0.0
    assert difference.margin95 == pytest.approx(1.96 * np.sqrt(61) / 1002 * 100, rel=1e-4)
    assert paired_difference(old, old, labels).margin95 > 0.1
