"""Temperature and threshold of a file, from its own logits on validation images.

Array names: N images, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from qdeploy.core.confidence import Confidence
from qdeploy.core.errors import InputError
from qdeploy.core.metrics import Floats
from qdeploy.core.reference import BINS, Histogram, Reference
from qdeploy.core.reliability import (
    Bin,
    Doubles,
    Integers,
    bins_of,
    fit_temperature,
    likelihoods,
    log_softmax,
    reached_by,
    reliability,
    scores_of,
)
from qdeploy.core.words import percent
from qdeploy.data.dataset import Split

LEAST_IMAGES = 100
"""Validation images that a temperature takes: with fewer, noise decides."""
MOST_IMAGES = 5000
"""Validation images that are run, if a threshold takes no more: others move neither number."""
BELOW = 10
"""Validation images that must lie below a threshold, so that it does not hang on one of them."""
NOISE_NATS = 1.29
"""Likelihood of all images that a temperature of the other half gains in 5 % of the cases where 1 is right."""
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What a file gives for labelled images."""

    logits: Floats
    """``[N, K]``"""
    labels: Integers
    """``[N]``"""


@dataclass(frozen=True, kw_only=True)
class Diagram:
    """The reliability diagram of the test images, before and after."""

    before: tuple[Bin, ...]
    after: tuple[Bin, ...]


def most_images(coverage: float | None) -> int:
    """Return how many validation images are run at most."""
    return MOST_IMAGES if coverage is None else max(MOST_IMAGES, images_needed(coverage))


def confidence_images(split: Split, coverage: float | None = None) -> Split:
    """Return the validation images that are run: all, or ``most_images`` drawn with a fixed seed."""
    most = most_images(coverage)
    if len(split) <= most:
        return split
    return split.take(np.sort(np.random.default_rng(SEED).permutation(len(split))[:most]))


def require_coverage(coverage: float | None) -> None:
    """Check a coverage.

    Raises:
        InputError: If it is not between 0 and 1.
    """
    if coverage is not None and not 0 < coverage < 1:
        raise InputError("`coverage` must be between 0 and 1, both excluded", found=coverage, fix="0.95 is usual")


def images_needed(coverage: float) -> int:
    """Return how many validation images a threshold takes."""
    return math.ceil(BELOW / (1 - coverage) * (1 - 1e-9))


def require_threshold_images(labels: Integers, classes: tuple[str, ...], coverage: float | None) -> None:
    """Check that validation images can set a threshold, where one is wanted.

    Raises:
        InputError: If there are too few, or a class has none.
    """
    require_coverage(coverage)
    if coverage is None:
        return
    if len(labels) < (needed := images_needed(coverage)):
        raise InputError(
            f"a threshold for `coverage={coverage:g}` takes {needed} validation images, so that {BELOW} lie below it",
            found=len(labels),
            fix="give more validation images, or a lower coverage",
        )
    if without := _without_images(labels, classes):
        raise InputError(
            f"the class '{without[0]}' has no validation images: whether it is known, no threshold can tell",
            fix="give some of every class, or leave out `coverage`",
        )


def confidence_of(
    val: Labelled, test: Labelled, classes: tuple[str, ...], coverage: float | None
) -> tuple[Confidence, Diagram | None]:
    """Fit temperature and threshold of a file, and measure them on images that had no part in it.

    Args:
        val: The file's answers to validation images.
        test: Its answers to test images.
        classes: Its labels.
        coverage: Share of the validation images that keep their label; None: nothing is unknown.

    Returns:
        What the card says, and the reliability diagram, if all answers to test images are finite.

    Raises:
        InputError: If the answers allow no threshold.
    """
    if coverage is not None and not np.isfinite(val.logits).all():
        raise InputError(
            "the answer to a validation image is not finite: no threshold can be set",
            fix="repair the model, or leave out `coverage`",
        )
    temperature, reason = _temperature(val, classes)
    reference = reference_of(val.logits, temperature)
    made = Confidence(temperature=temperature, images=len(val.labels), reason=reason, reference=reference)
    if coverage is not None:
        made = replace(made, coverage=coverage, threshold=_threshold(scores_of(val.logits, temperature), coverage))
    if not np.isfinite(test.logits).all():
        return made, None
    before, after = (tuple(bins_of(np.exp(log_softmax(test.logits, t)), test.labels)) for t in (1.0, temperature))
    return _measured(made, test), Diagram(before=before, after=after)


def reference_of(logits_NK: Floats, temperature: float) -> Reference | None:
    """Return the histograms of a file's answers to validation images, with which later answers are compared.

    The edges part the images into ``drift.BINS`` groups of the same number, as far as they are not equal. They are
    rounded: a probability of almost 1 differs in its last digits from one engine to another.

    Args:
        logits_NK: The answers, ``[N, K]``.
        temperature: What the graph divides them by.

    Returns:
        The histograms; None of fewer than ``LEAST_IMAGES``, or if an answer is not finite.
    """
    if len(logits_NK) < LEAST_IMAGES or not np.isfinite(logits_NK).all():
        return None
    return Reference(
        score=_histogram(scores_of(logits_NK, temperature)),
        confidence=_histogram(np.exp(log_softmax(logits_NK, temperature)).max(axis=1)),
        classes=tuple(np.bincount(logits_NK.argmax(axis=1), minlength=logits_NK.shape[1]).tolist()),
    )


def _histogram(values_N: Doubles) -> Histogram:
    edges = np.unique(np.round(np.quantile(values_N, np.arange(1, BINS) / BINS, method="midpoint"), 4))
    edges = edges[edges > values_N.min()]  # below an edge there is something
    counts = np.bincount(np.searchsorted(edges, values_N, side="right"), minlength=len(edges) + 1)
    return Histogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


def _measured(made: Confidence, test: Labelled) -> Confidence:
    """Add what the test images say of it."""
    made = replace(
        made,
        test_images=len(test.labels),
        before=reliability(test.logits, test.labels),
        after=reliability(test.logits, test.labels, made.temperature),
    )
    if made.threshold is None:
        return made
    known = scores_of(test.logits, made.temperature) >= made.threshold
    right = (test.logits.argmax(axis=1) == test.labels)[known]
    return replace(
        made,
        test_coverage=round(float(known.mean()), 6),
        test_top1_answered=round(100 * float(right.mean()), 4) if len(right) else None,
    )


def _threshold(scores_N: Doubles, coverage: float) -> float:
    """Return a score that so many of the images reach.

    It lies in the middle between the last that does and the next that does not: a deployed file's rounding would else
    decide of the former.

    Raises:
        InputError: If all have the same.
    """
    least = reached_by(scores_N, coverage)
    below_N = scores_N[scores_N < least]
    if not len(below_N):
        raise InputError(
            "no threshold can be set: the least score of the validation images is that of too many of them",
            found=f"{percent(float((scores_N == least).mean()))} with {least:.4g}",
            fix="a model whose logits are all equal knows nothing; leave out `coverage`",
        )
    return (least + float(below_N.max())) / 2


def _temperature(val: Labelled, classes: tuple[str, ...]) -> tuple[float, str]:
    """Return the temperature, and why.

    Each half of the images judges the temperature of the other. If that helps beyond noise, all of them set it. What is
    noise follows from the slopes a and b of the two halves' likelihoods, which are standard normal where the
    probabilities are right as they are: the gain is then near ``2 a b - (a^2 + b^2) / 2``.
    """
    n = len(val.labels)
    if n < LEAST_IMAGES:
        return 1.0, f"left at 1: {n} validation images, and a temperature takes {LEAST_IMAGES}"
    if not np.isfinite(val.logits).all():
        return 1.0, "left at 1: the answer to a validation image is not finite"
    if without := _without_images(val.labels, classes):
        return 1.0, f"left at 1: the class '{without[0]}' has no validation images"
    order = np.random.default_rng(SEED).permutation(n)
    gains = []
    for fitted, judged in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        logits, labels = val.logits[judged], val.labels[judged]
        found = fit_temperature(val.logits[fitted], val.labels[fitted])
        gains.append(likelihoods(logits, labels) - likelihoods(logits, labels, found))
    gain = float(np.concatenate(gains).sum())
    words = f"{gain:.1f} nats of likelihood on {n} validation images, each judged by what the others set"
    if not gain > NOISE_NATS:
        return 1.0, f"left at 1: another gains no more than noise, {words}"
    temperature = round(fit_temperature(val.logits, val.labels), 6)
    return temperature, f"gains {words}"


def _without_images(labels: Integers, classes: tuple[str, ...]) -> list[str]:
    counts = np.bincount(labels, minlength=len(classes))
    return [name for name, count in zip(classes, counts, strict=True) if not count]
