"""Measures of confidence: the temperature of a softmax, calibration error, and how well a score tells images apart.

Array names: N images, K classes, R repetitions of a bootstrap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.confidence import Reliability
from qdeploy.core.metrics import Floats

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]
BINS = 15
RESAMPLES = 500
STEEPEST = 10.0
"""Temperatures are looked for between 1 / 10 and 10: beyond, the validation images are too easy or too few to tell."""


@dataclass(frozen=True, kw_only=True)
class Bin:
    """One of ``BINS`` groups of equally many images, of about the same confidence."""

    confidence: float
    """Mean probability of the answers, in [0, 1]."""
    accuracy: float
    """Share of them that is right, in [0, 1]."""
    n: int


def log_softmax(logits_NK: Floats, temperature: float = 1.0) -> Doubles:
    """Return the logarithms of ``softmax(logits / temperature)``, ``[N, K]``."""
    scaled = logits_NK.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))


def likelihoods(logits_NK: Floats, labels_N: Integers, temperature: float = 1.0) -> Doubles:
    """Return the negative log-likelihood of each image's label, ``[N]``, in nats."""
    return -np.take_along_axis(log_softmax(logits_NK, temperature), labels_N[:, None], axis=1)[:, 0]


def fit_temperature(logits_NK: Floats, labels_N: Integers) -> float:
    """Return the temperature of the least mean negative log-likelihood (Guo et al., 2017).

    That is convex in 1 / T, so that its slope is bisected; 1 where every temperature is the same, as with logits that
    are all equal.
    """
    z = logits_NK.astype(np.float64)
    own = np.take_along_axis(z, labels_N[:, None], axis=1)[:, 0]

    def slope(inverse: float) -> float:
        p = np.exp(log_softmax(logits_NK, 1 / inverse))
        return float(((p * z).sum(axis=1) - own).mean())

    low, high = 1 / STEEPEST, STEEPEST
    if np.ptp(z, axis=1).max(initial=0.0) == 0.0:
        return 1.0
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1 / math.sqrt(low * high)


def bins_of(probabilities_NK: Doubles, labels_N: Integers, count: int = BINS) -> list[Bin]:
    """Return the images in groups of equal size, from the least to the most confident answer.

    Images of the same confidence count as right by the share of them that is: a data set that comes class by class
    would else be parted by class.
    """
    confidence, right = probabilities_NK.max(axis=1), probabilities_NK.argmax(axis=1) == labels_N
    shared = _shared(right, _places(confidence), np.ones(len(right)))
    order = confidence.argsort(kind="stable")
    return [
        Bin(confidence=float(confidence[i].mean()), accuracy=float(shared[i].mean()), n=len(i))
        for i in np.array_split(order, min(count, len(order)))
    ]


def _places(values_N: Doubles) -> Integers:
    """Return the place of each value among all that differ, from the least on."""
    return np.unique(values_N, return_inverse=True)[1].astype(np.int64)


def _shared(right_N: NDArray[np.bool_], places_N: Integers, weights_N: Doubles | Integers) -> Doubles:
    """Return for each image the share of right answers among those of its place."""
    weights = np.maximum(np.bincount(places_N, weights=weights_N), 1)
    return np.asarray((np.bincount(places_N, weights=right_N * weights_N) / weights)[places_N])


def reliability(logits_NK: Floats, labels_N: Integers, temperature: float = 1.0, seed: int = 0) -> Reliability:
    """Measure ``softmax(logits / temperature)`` on labelled images; the bootstrap draws images within fixed bins."""
    p = np.exp(log_softmax(logits_NK, temperature))
    truth = np.zeros_like(p)
    np.put_along_axis(truth, labels_N[:, None], 1.0, axis=1)
    low, high = _ece_interval(p, labels_N, seed)
    return Reliability(
        ece=sum(b.n * abs(b.confidence - b.accuracy) for b in bins_of(p, labels_N)) / len(p),
        ece_ci95=(low, high),
        nll=float(likelihoods(logits_NK, labels_N, temperature).mean()),
        brier=float(np.square(p - truth).sum(axis=1).mean()),
    )


def _ece_interval(p_NK: Doubles, labels_N: Integers, seed: int) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentile of the error over images drawn again."""
    n = len(p_NK)
    order = p_NK.max(axis=1).argsort(kind="stable")
    confidence, right = p_NK.max(axis=1)[order], (p_NK.argmax(axis=1) == labels_N)[order]
    places = _places(confidence)
    starts = np.cumsum([0, *(len(part) for part in np.array_split(order, min(BINS, n))[:-1])])
    rng = np.random.default_rng(seed)
    errors = []
    for _ in range(RESAMPLES):
        counts = np.bincount(rng.integers(0, n, n), minlength=n)
        gaps = confidence - _shared(right, places, counts)
        errors.append(float(np.abs(np.add.reduceat(counts * gaps, starts)).sum()) / n)
    low, high = np.percentile(errors, (2.5, 97.5))
    return float(low), float(high)


def scores_of(logits_NK: Floats, temperature: float) -> Doubles:
    """Return each image's score ``[N]``; see ``qdeploy.core.confidence.score``."""
    return logits_NK.max(axis=1).astype(np.float64) - temperature * log_softmax(logits_NK, temperature).max(axis=1)


def auroc(inside: Doubles, outside: Doubles) -> float:
    """Return how often an image of the known kind has the higher score of two, in [0, 1]; equal scores count half.

    Args:
        inside: Scores of images of the known kind.
        outside: Scores of other images.
    """
    ordered = np.sort(outside)
    below, upto = (np.searchsorted(ordered, inside, side) for side in ("left", "right"))
    return float((below + upto).mean() / (2 * len(outside)))


def reached_by(scores_N: Doubles, share: float) -> float:
    """Return the highest score that at least such a share of the images, in (0, 1), reach."""
    n = len(scores_N)
    return float(np.sort(scores_N)[n - max(1, math.ceil(share * n - 1e-9))])


def fpr_at_95(inside: Doubles, outside: Doubles) -> float:
    """Return the share of other images that pass the highest threshold which 95 % of the known kind pass."""
    return float((outside >= reached_by(inside, 0.95)).mean())


def risk_coverage(scores_N: Doubles, right_N: NDArray[np.bool_]) -> tuple[Doubles, float]:
    """Return the share of wrong answers among the 1, 2, ..., N images of the highest scores, and the curve's mean.

    The mean is the area under the risk-coverage curve (Geifman and El-Yaniv, 2017): 0 is best. Images of the same score
    count as wrong by the share of them that is, which is the mean over all their orders.
    """
    order = (-scores_N).argsort(kind="stable")
    wrong = _shared(~right_N, _places(scores_N), np.ones(len(order)))[order]
    risks = np.cumsum(wrong) / np.arange(1, len(wrong) + 1)
    return risks, float(risks.mean())
