"""Metrics: accuracy, agreement, signal-to-noise ratio, percentiles.

Array names: N samples, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.intervals import PairedDifference, paired_counts
from qdeploy.core.words import counted, percent

Floats = NDArray[np.float32]

MIN_SAMPLES = {90: 64, 95: 130, 99: 662}
"""Fewest samples that let a percentile be stated with 99 % confidence (MLPerf LoadGen, early stopping)."""


def topk_percent(logits_NK: Floats, labels_N: NDArray[np.int64], k: int) -> float:
    """Return the percentage of samples whose label is among the k largest logits; ties as in ``label_ranks``."""
    return float((label_ranks(logits_NK, labels_N) < k).mean() * 100.0)


def label_ranks(logits_NK: Floats, labels_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of classes that come before each sample's label, 0 for a right answer.

    Of equal logits the lower index comes first, as in ``argmax``; a NaN logit comes before all.
    """
    own = np.take_along_axis(logits_NK, labels_N[:, None], axis=1)
    lower = np.arange(logits_NK.shape[1]) < labels_N[:, None]
    return (~(logits_NK <= own) | (lower & (logits_NK == own))).sum(axis=1)


@dataclass(frozen=True, kw_only=True)
class MacroScores:
    """Means over the classes, each of the same weight however many images it has, in [0, 1]."""

    precision: float
    recall: float
    f1: float


def confusion_of(logits_NK: Floats, labels_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how often each label (rows) got each answer (columns), ``[K, K]``."""
    confusion_KK = np.zeros((logits_NK.shape[1],) * 2, np.int64)
    np.add.at(confusion_KK, (labels_N, logits_NK.argmax(axis=1)), 1)
    return confusion_KK


def macro_scores(confusion_KK: NDArray[np.int64]) -> MacroScores:
    """Average precision, recall and F1 over the classes that occur, as a label or as an answer.

    A precision without answers and a recall without images count as 0, as in scikit-learn.
    """
    right, labelled, answered = confusion_KK.diagonal(), confusion_KK.sum(axis=1), confusion_KK.sum(axis=0)
    occurs = labelled + answered > 0
    shares = (right / np.maximum(count, 1) for count in (answered, labelled, (labelled + answered) / 2))
    precision, recall, f1 = (float(share[occurs].mean()) for share in shares)
    return MacroScores(precision=precision, recall=recall, f1=f1)


def agreement(a_NK: Floats, b_NK: Floats) -> float:
    """Return the share of samples in [0, 1] for which both have the same largest logit."""
    return float((a_NK.argmax(axis=1) == b_NK.argmax(axis=1)).mean())


def sqnr_db(reference: Floats, other: Floats) -> float:
    """Return the signal-to-quantization-noise ratio in decibels; infinite if both are equal."""
    noise = float(np.square(reference.astype(np.float64) - other).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    return math.inf if noise == 0.0 else 10.0 * math.log10(max(signal, 1e-30) / noise)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Agreement of one model's logits with another's, of a step of the export with the step before."""

    max_abs: float
    """Largest difference of a logit."""
    mean_abs: float
    cosine: float
    """Cosine similarity of all logits as one vector; 1 if they point the same way."""
    sqnr_db: float
    top1_agreement: float
    """Share of the images for which both have the same largest logit, in [0, 1]."""
    flips: int
    """Number of images whose largest logit is another one."""
    n: int

    def same_words(self) -> str:
        """Return for how many images both have the same largest logit: ``60 of 63 images (95.24 %)``."""
        return f"{self.n - self.flips:,} of {counted(self.n, 'image')} ({percent(self.top1_agreement, 2)})"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; an exact match has an sqnr_db of None."""
        values = asdict(self)
        return {**values, "sqnr_db": values["sqnr_db"] if np.isfinite(values["sqnr_db"]) else None}


def measure(reference_NK: Floats, result_NK: Floats) -> Parity:
    """Compare logits of the same images."""
    difference = np.abs(reference_NK - result_NK)
    same = agreement(reference_NK, result_NK)
    n = len(reference_NK)
    return Parity(
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        cosine=_cosine(reference_NK, result_NK),
        sqnr_db=sqnr_db(reference_NK, result_NK),
        top1_agreement=same,
        flips=round((1 - same) * n),
        n=n,
    )


def _cosine(a: Floats, b: Floats) -> float:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(x @ y / max(np.linalg.norm(x) * np.linalg.norm(y), 1e-30))


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return a percentile by the nearest-rank rule: always one of the samples."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(percent / 100.0 * len(ordered)) - 1)]


def paired_difference(new_NK: Floats, old_NK: Floats, labels_N: NDArray[np.int64]) -> PairedDifference:
    """Compare two models' predictions sample by sample; of equal logits the lower index counts, as ``predict`` says."""
    new, old = new_NK.argmax(1) == labels_N, old_NK.argmax(1) == labels_N
    return paired_counts(int((old & ~new).sum()), int((new & ~old).sum()), len(labels_N))
