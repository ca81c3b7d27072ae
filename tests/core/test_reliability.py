from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from qdeploy.core.confidence import Confidence, Cut, Reliability, score
from qdeploy.core.reliability import (
    auroc,
    bins_of,
    fit_temperature,
    fpr_at_95,
    likelihoods,
    reached_by,
    reliability,
    risk_coverage,
    scores_of,
)

RNG = np.random.default_rng(0)


def drawn(logits: NDArray[np.float32], temperature: float, seed: int = 0) -> NDArray[np.int64]:
    """Draw labels for which ``softmax(logits / temperature)`` is the truth."""
    scaled = logits.astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return (p.cumsum(1) < np.random.default_rng(seed).random(len(p))[:, None]).sum(1).clip(0, p.shape[1] - 1)


def some_logits(n: int, seed: int = 0) -> NDArray[np.float32]:
    return (3 * np.random.default_rng(seed).standard_normal((n, 5))).astype(np.float32)


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.5])
def test_the_temperature_is_that_of_the_labels_and_the_best_of_a_grid(truth: float) -> None:
    logits = some_logits(20_000)
    labels = drawn(logits, truth)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(truth, rel=0.05)
    others = [likelihoods(logits, labels, t).mean() for t in np.geomspace(0.2, 8, 40)]
    assert likelihoods(logits, labels, found).mean() <= min(others)


def test_equal_logits_have_no_temperature() -> None:
    assert fit_temperature(np.full((50, 4), 2.0, np.float32), np.zeros(50, np.int64)) == 1.0


def test_images_that_are_all_right_do_not_make_the_temperature_vanish() -> None:
    logits = some_logits(100)
    assert fit_temperature(logits, logits.argmax(1)) == pytest.approx(0.1, rel=1e-6)


def test_the_calibration_error_by_hand() -> None:
    # 30 images with two classes: 15 bins of two, in each 0.8 or 0.9 is said and one of two is right
    p = np.repeat([[0.8, 0.2], [0.9, 0.1]], [16, 14], axis=0)
    labels = np.tile([0, 1], 15)
    logits = np.log(p).astype(np.float32)
    found = reliability(logits, labels)
    assert found.ece == pytest.approx((16 * 0.3 + 14 * 0.4) / 30, abs=1e-6)
    brier = (8 * (0.08 + 1.28) + 7 * (0.02 + 1.62)) / 30
    assert found.brier == pytest.approx(brier, abs=1e-6)
    nll = -(8 * math.log(0.8 * 0.2) + 7 * math.log(0.9 * 0.1)) / 30
    assert found.nll == pytest.approx(nll, abs=1e-6)
    assert [b.n for b in bins_of(p, labels)] == [2] * 15


def test_the_interval_of_the_calibration_error_holds_what_was_measured() -> None:
    logits = some_logits(3000)
    found = reliability(logits, drawn(logits, 2.0))
    assert found.ece_ci95[0] < found.ece < found.ece_ci95[1]
    assert found.ece > 0.05
    assert reliability(logits, drawn(logits, 2.0), 2.0).ece < 0.03


def test_the_score_of_two_maxima_is_the_energy() -> None:
    logits = some_logits(50)
    for temperature in (0.7, 1.0, 2.0):
        energy = temperature * np.log(np.exp(logits.astype(np.float64) / temperature).sum(1))
        assert scores_of(logits, temperature) == pytest.approx(energy, abs=1e-6)
        p = np.exp(logits[0].astype(np.float64) / temperature)
        row = (p / p.sum()).tolist()
        assert Cut(0.0, temperature).score(logits[0].tolist(), row) == pytest.approx(energy[0], abs=1e-6)
    assert math.isfinite(score(1.0, 0.0, 1.0))


def test_auroc_and_fpr_are_shares_of_pairs() -> None:
    inside, outside = RNG.integers(3, 9, 60).astype(float), RNG.integers(0, 6, 40).astype(float)
    pairs = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
    assert auroc(inside, outside) == pytest.approx(sum(pairs) / len(pairs))
    assert auroc(np.array([1.0, 2.0]), np.array([0.0])) == 1.0
    assert fpr_at_95(np.arange(100.0), np.array([3.0, 4.0, 5.0, 50.0])) == 0.5  # 5 to 99 are 95 %


def test_a_threshold_is_the_highest_that_the_share_reaches() -> None:
    for n, share in ((200, 0.95), (100, 0.9), (30, 0.7), (7, 0.5), (10, 0.999), (10, 1e-12), (1, 0.5)):
        scores = RNG.integers(0, 40, n).astype(float)
        found = reached_by(scores, share)
        assert (scores >= found).mean() >= share - 1e-9
        assert all((scores >= other).mean() < share - 1e-9 for other in scores[scores > found])
    assert (np.arange(200.0) < reached_by(np.arange(200.0), 0.95)).sum() == 10


def test_the_risk_coverage_curve_by_hand() -> None:
    risks, area = risk_coverage(np.array([1.0, 4.0, 3.0, 2.0]), np.array([False, True, False, True]))
    assert risks.tolist() == [0, 0.5, 1 / 3, 0.5]
    assert area == pytest.approx((0.5 + 1 / 3 + 0.5) / 4)


def test_equal_answers_are_measured_alike_in_whichever_order_they_come() -> None:
    """A folder a class gives its images class by class: first all that a model with one answer has right."""
    labels = np.repeat(np.arange(10), 100)
    logits = np.zeros((1000, 10), np.float32)  # 10 % is said, and 10 % are right
    found = reliability(logits, labels)
    assert found.ece == pytest.approx(0, abs=1e-9)
    assert 0.01 < found.ece_ci95[1] < 0.03  # as far as 1,000 images can tell
    right = logits.argmax(1) == labels
    risks, area = risk_coverage(scores_of(logits, 1.0), right)
    assert area == pytest.approx(0.9)
    assert np.allclose(risks, 0.9)
    scores = RNG.integers(0, 5, 60).astype(float)
    right = scores + RNG.normal(size=60) > 1
    orders = [RNG.permutation(60) for _ in range(4000)]
    by_chance = [np.cumsum(~right[o][(-scores[o]).argsort(kind="stable")]) / np.arange(1, 61) for o in orders]
    assert risk_coverage(scores, right)[0] == pytest.approx(np.mean(by_chance, axis=0), abs=0.03)


def test_a_card_s_confidence_is_read_as_it_was_written() -> None:
    measured = Reliability(ece=0.01, ece_ci95=(0.0, 0.02), nll=0.3, brier=0.1)
    made = Confidence(
        temperature=1.5, images=400, reason="why", coverage=0.95, threshold=-3.0, before=measured, after=measured
    )
    assert Confidence.from_dict(made.to_dict()) == made


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0},
        {"temperature": math.nan},
        {"temperature": "1"},
        {"threshold": math.inf},
        {"threshold": None},
        {"coverage": None},
        {"after": {"ece": 0.1}},
    ],
)
def test_a_card_s_confidence_that_is_none_is_refused(change: dict[str, object]) -> None:
    good = Confidence(temperature=1.5, images=400, reason="why", coverage=0.95, threshold=-3.0).to_dict()
    with pytest.raises((ValueError, LookupError)):
        Confidence.from_dict({**good, **change})
