"""How far a model's confidence can be trusted: calibration, what it leaves unanswered, and images of other things.

Array names: N images, B images of a batch, K labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qdeploy.core.card import Card
from qdeploy.core.confidence import Reliability
from qdeploy.core.errors import DataError, ImageError, InputError
from qdeploy.core.intervals import wilson_interval
from qdeploy.core.metrics import Floats
from qdeploy.core.reliability import (
    Doubles,
    Integers,
    auroc,
    fpr_at_95,
    log_softmax,
    reliability,
    risk_coverage,
    scores_of,
)
from qdeploy.runtime.inputs import STDIN, expand
from qdeploy.runtime.session import Session

POINTS = 20
"""Points of the risk-coverage curve that are told."""
BATCH = 16
DRAWN = 200
"""Repetitions of the bootstrap of an AUROC."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """How well one score tells images of other things from those of the data set."""

    auroc: float
    """How often the data set's image has the higher score of two, in [0, 1]."""
    auroc_ci95: tuple[float, float]
    """95 % bootstrap interval."""
    fpr95: float
    """Share of the other images that pass a threshold which 95 % of the data set's images pass."""


@dataclass(frozen=True, kw_only=True)
class Others:
    """What a model does with images of other things."""

    folder: str
    n: int
    left_out: int
    """Images that cannot be read."""
    score: Told
    """By the score, the energy."""
    probability: Told
    """By the largest probability, the baseline that everyone uses."""
    unknown: float | None
    """Share that the file calls unknown; None without a threshold."""


@dataclass(frozen=True, kw_only=True)
class Trust:
    """How far a model's confidence can be trusted on labelled images."""

    temperature: float
    reliability: Reliability
    coverage: float | None
    """Share of the images that are answered; None if the file answers all."""
    coverage_ci95: tuple[float, float] | None
    """95 % Wilson interval."""
    answered_top1: float | None
    """Top-1 accuracy on the images that are answered, in percent."""
    curve: tuple[tuple[float, float], ...]
    """Coverage and share of wrong answers, where images of the lowest score are left unanswered first."""
    aurc: float
    """Area under that curve; less is better."""
    aurc_probability: float
    """The same where those of the lowest probability are left out first."""
    others: Others | None = None
    """None if no images of other things were given."""


class Answers:
    """Collects a model's logits: 4 K bytes an image, the one thing of an evaluation that grows with its images."""

    def __init__(self) -> None:
        self._logits: list[Floats] = []
        self._labels: list[Integers] = []

    def add(self, logits_BK: Floats, labels_B: Integers) -> None:
        """Take a batch."""
        self._logits.append(logits_BK)
        self._labels.append(labels_B)

    def trust(self, card: Card, abstain: bool, others: Callable[[Floats], Others] | None) -> Trust:
        """Measure what was collected.

        Args:
            card: Its temperature and its threshold.
            abstain: Whether the threshold counts.
            others: Measures images of other things beside the logits of these.
        """
        logits, labels = np.concatenate(self._logits), np.concatenate(self._labels)
        right = logits.argmax(axis=1) == labels
        scores, surest = scores_of(logits, card.temperature), _largest(logits, card)
        risks, area = risk_coverage(scores, right)
        places = np.unique(np.linspace(1, len(right), POINTS).round().astype(int))
        cut = card.cut if abstain else None
        answered = scores >= cut.threshold if cut else None
        kept = None if answered is None else int(answered.sum())
        return Trust(
            temperature=card.temperature,
            reliability=reliability(logits, labels, card.temperature),
            coverage=None if kept is None else kept / len(right),
            coverage_ci95=None if kept is None else wilson_interval(kept / len(right), len(right)),
            answered_top1=None if answered is None or not kept else 100 * float(right[answered].mean()),
            curve=tuple((float(p / len(right)), float(risks[p - 1])) for p in places),
            aurc=area,
            aurc_probability=risk_coverage(surest, right)[1],
            others=others(logits) if others else None,
        )


def require_others(folder: Path) -> None:
    """Check that there are images of other things, before all others are run.

    Raises:
        InputError: If not.
    """
    if str(folder) == STDIN or not folder.exists():
        raise InputError(f"there is no folder {folder} of images of other things", fix="give one with `unknown`")


def measure_others(folder: Path, card: Card, session: Session, abstain: bool, inside_NK: Floats) -> Others:
    """Let a model see images that show none of its classes.

    Args:
        folder: A folder of images, or one image.
        card: The model's.
        session: The model, opened.
        abstain: Whether its threshold counts.
        inside_NK: Its logits of the data set's images.

    Raises:
        DataError: If it holds no readable image.
    """
    pixels, left_out, logits = [], 0, []
    for name in expand([str(folder)]):
        try:
            pixels.append(card.preprocessing.to_bytes(Path(name)))
        except ImageError:
            left_out += 1
        if len(pixels) == BATCH:
            logits += session.infer_bytes(b"".join(pixels), len(pixels))[0]
            pixels.clear()
    logits += session.infer_bytes(b"".join(pixels), len(pixels))[0]
    if not logits:
        raise DataError(f"{folder} holds no image that can be read; give a folder of images with `unknown`")
    outside = np.asarray(logits, np.float32)
    if not np.isfinite(outside).all():
        raise DataError(f"the answer to an image of {folder} is not finite: the model file is not sound")
    scores, cut = scores_of(outside, card.temperature), card.cut if abstain else None
    return Others(
        folder=str(folder),
        n=len(logits),
        left_out=left_out,
        score=told_apart(scores_of(inside_NK, card.temperature), scores),
        probability=told_apart(_largest(inside_NK, card), _largest(outside, card)),
        unknown=None if cut is None else float((scores < cut.threshold).mean()),
    )


def told_apart(inside: Doubles, outside: Doubles, seed: int = 0) -> Told:
    """Measure how well a score tells two kinds of images apart; the bootstrap draws both anew."""
    rng = np.random.default_rng(seed)
    drawn = [auroc(rng.choice(inside, len(inside)), rng.choice(outside, len(outside))) for _ in range(DRAWN)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    found, interval = auroc(inside, outside), (float(low), float(high))
    return Told(auroc=found, auroc_ci95=interval, fpr95=fpr_at_95(inside, outside))


def _largest(logits_NK: Floats, card: Card) -> Doubles:
    return log_softmax(logits_NK, card.temperature).max(axis=1)
