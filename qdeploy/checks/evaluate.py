"""Accuracy of an artifact on a labelled data set, streamed in batches; labels are matched by name.

Array names: B images of a batch, S height and width, K labels of the artifact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.checks.confidence import Answers, Trust, measure_others, require_others
from qdeploy.core.artifact import Artifact, read_artifact
from qdeploy.core.budget import AccuracyBudget, Flips, Shown
from qdeploy.core.card import Card
from qdeploy.core.cautions import cautions
from qdeploy.core.errors import ArtifactError, DataError, InputError
from qdeploy.core.image_formats import chosen_formats, formats_of_run
from qdeploy.core.intervals import PairedDifference, paired_counts, wilson_interval
from qdeploy.core.metrics import Floats, MacroScores, label_ranks, macro_scores
from qdeploy.core.progress import Progress
from qdeploy.core.reliability import scores_of
from qdeploy.core.words import rounded
from qdeploy.data.embedded import NAME as EMBEDDED
from qdeploy.data.labelled import ALL, Batch, LabelledImages, labelled_images
from qdeploy.runtime.session import Session, open_session

Integers = NDArray[np.int64]
TOP5 = 5


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The configuration of ``qdeploy eval``."""

    data: str = EMBEDDED
    """A data set's name, or its folder or archive."""
    split: str = "test"
    """train, val or test as training cuts them, or all."""
    formats: tuple[str, ...] | None = None
    """Which image files are taken, as ``("jpeg", "png")``; by default those that the model's training took."""
    batch_size: int = 32
    """Images of one inference; larger ones gain nothing on a CPU."""
    engine: str = "ort"
    threads: int | None = None
    """Threads of one inference; by default 1 for small models, else the usable cores."""
    abstain: bool = True
    """Whether images below the file's threshold, if it has one, are unanswered."""
    unknown: Path | None = None
    """A folder of images of other things, which the model should not know."""
    against: Path | None = None
    """Another model file, the fp32 one say, that the accuracy is compared with image by image."""
    max_drop: float = 1.0
    """Points of top-1 that may be lost against it."""
    strict: bool = False
    """Accept only a loss that is shown to be within ``max_drop``."""

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= 4096:
            raise InputError("`batch_size` must be between 1 and 4096", found=self.batch_size)
        AccuracyBudget(points=self.max_drop)
        if self.formats is not None:
            chosen_formats(self.formats)


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One label's row; a share is None where it would divide by zero."""

    label: str
    n: int
    precision: float | None
    """Share, in [0, 1], of the answers with this label that are right."""
    recall: float | None
    """Share of this label's images that are recognised."""
    f1: float | None
    confused_with: str | None
    """The wrong answer that its images get most often."""
    confused: int
    """How often ``confused_with`` is answered for this label's images."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One image's answer."""

    image: str
    sha256: str
    """First 16 hexadecimal digits of the decoded image's SHA-256."""
    label: str
    predicted: str
    probability: float
    """Probability of the predicted label, in [0, 1]."""
    score: float
    """How much the image is like those the model was made with."""
    unknown: bool
    """Whether that is below the file's threshold."""
    rank: int
    """Rank of the true label among all labels; 1 for a right answer."""


@dataclass(frozen=True, kw_only=True)
class Against:
    """What an artifact loses against another on the same images."""

    path: str
    difference: PairedDifference
    flips: Flips
    budget: AccuracyBudget
    shown: Shown
    accepted: bool

    def words(self) -> str:
        """Return the answer as a sentence."""
        lost, margin, most = rounded(-self.difference.points, 2), self.difference.margin95, self.budget.points
        needed = self.budget.images_needed(self.difference) if self.shown is Shown.NOT_SHOWN else None
        more = f"; about {needed} images would show it" if needed else ""
        return (
            f"against {self.path}: loses {lost} +- {margin:.2f} points, {self.flips.flips} answers differ; "
            f"{self.shown.value}: at most {most:g} allowed{more}"
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The whole result; top-1, top-5 and their 95 % Wilson intervals are in percent."""

    path: str
    name: str
    precision: str
    engine: str
    data: str
    split: str
    n: int
    top1: float
    ci95: tuple[float, float]
    top5: float | None
    """None for models of five labels or fewer."""
    top5_ci95: tuple[float, float] | None
    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    """A row for each true label, a column for each answer."""
    classes: tuple[ClassScore, ...]
    macro: MacroScores
    """Means over the classes that occur."""
    images_per_s: float
    """Images per second of inference alone, without decoding."""
    card_accuracy: dict[str, Any]
    """Accuracy as the artifact's card states it."""
    trust: Trust
    """How far its confidence can be trusted."""
    against: Against | None = None
    """None if no other file was given."""
    notes: tuple[str, ...]
    """What a reader of the numbers has to know."""
    problems: tuple[str, ...]
    """Images left out, and why."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of ``qdeploy eval``."""
        return asdict(self)


def evaluate(
    path: Path,
    config: EvalConfig | None = None,
    progress: Progress | None = None,
    each: Callable[[Scored], None] | None = None,
) -> Evaluation:
    """Measure an artifact's accuracy; of an image only its logits are kept in memory.

    An image counts as right in top-k if fewer than k labels come before its own; of equal logits the label with the
    lower index comes first.

    Args:
        path: A model file.
        config: What to measure on.
        progress: Called with images done and their total, first of reading, then of inference.
        each: Called with every image's answer.

    Raises:
        InputError: If the file to compare with has other labels or another preprocessing, or there is no folder of
            images of other things.
        DataError: If the data set has no usable image, or a class that the artifact has not.
    """
    config = config or EvalConfig()
    artifact = read_artifact(path)
    card = artifact.card
    if config.unknown is not None:
        require_others(config.unknown)
    trained_on = formats_of_run(card.origin.training)
    rules = card.preprocessing.taking(config.formats or trained_on)
    images = labelled_images(config.data, config.split, rules, card.labels, progress)
    tally, pairs, trust, engine = _counted(artifact, config, images, progress, each)
    top1, ci95 = _share(tally.within[0], tally.n)
    top5, top5_ci95 = _share(tally.within[1], tally.n) if len(card.labels) > TOP5 else (None, None)
    return Evaluation(
        path=str(path),
        name=card.name,
        precision=card.precision,
        engine=engine,
        data=images.name,
        split=images.split,
        n=tally.n,
        top1=top1,
        ci95=ci95,
        top5=top5,
        top5_ci95=top5_ci95,
        labels=card.labels,
        confusion=tuple(map(tuple, tally.confusion.tolist())),
        classes=_class_scores(card.labels, tally.confusion),
        macro=macro_scores(tally.confusion),
        images_per_s=tally.n / tally.seconds,
        card_accuracy=card.accuracy.to_dict() if card.accuracy else {},
        trust=trust,
        against=pairs.against(config) if config.against else None,
        notes=(
            *_format_notes(config, trained_on),
            *images.notes,
            *lineage_notes(card, images, tally.calibrated),
            *cautions(card.labels, tally.confusion.tolist(), split=images.split.replace(ALL, "measured")),
        ),
        problems=tuple(images.problems),
    )


def _counted(
    artifact: Artifact,
    config: EvalConfig,
    images: LabelledImages,
    progress: Progress | None,
    each: Callable[[Scored], None] | None,
) -> tuple[_Tally, _Pairs, Trust, str]:
    """Run all images; return what was counted, and what ran them."""
    card = artifact.card
    tally = _Tally(card.labels, frozenset(card.calibration.images if card.calibration else ()))
    pairs, answers = _Pairs(), Answers()
    with ExitStack() as stack:
        session = stack.enter_context(open_session(artifact, config.engine, config.threads))
        other = stack.enter_context(_other(config, card)) if config.against else None
        for batch, logits, probabilities, seconds in _inferred(session, images.batches(config.batch_size)):
            require_finite(artifact.path, batch, probabilities)
            tally.add(batch, logits, seconds)
            answers.add(logits, batch.labels)
            if other:
                theirs, their_probabilities = other.infer(batch.pixels)
                require_finite(config.against, batch, their_probabilities)
                pairs.add(logits.argmax(1), theirs.argmax(1), batch.labels)
            if each:
                for answer in _scored(batch, logits, probabilities, card, config.abstain):
                    each(answer)
            if progress:
                progress(tally.n, images.count)
        if tally.n == 0:
            raise DataError(f"{images.name} has no usable image in {images.split}")
        others = config.unknown and partial(measure_others, config.unknown, card, session, config.abstain)
        return tally, pairs, answers.trust(card, config.abstain, others or None), session.engine


def require_finite(path: Path | None, batch: Batch, probabilities_BK: Floats) -> None:
    """Refuse answers that have no place in an order.

    Raises:
        ArtifactError: If one is NaN or infinite; it names the image.
    """
    broken = ~np.isfinite(probabilities_BK).all(axis=1)
    if broken.any():
        raise ArtifactError(
            f"the answer of {path} to {batch.names[int(broken.argmax())]} is not finite: the file is not sound",
            fix="compare it with its fp32 file, or export it again",
        )


class _Tally:
    """What is counted while the images stream."""

    def __init__(self, labels: tuple[str, ...], calibration: frozenset[str]) -> None:
        self.confusion = np.zeros((len(labels), len(labels)), np.int64)
        self.within = [0, 0]
        """Numbers of images whose label is the first answer, and among the first five."""
        self.n = 0
        self.seconds = 0.0
        self.calibrated = 0
        self._calibration = calibration

    def add(self, batch: Batch, logits_BK: Floats, seconds: float) -> None:
        ranks = label_ranks(logits_BK, batch.labels)
        np.add.at(self.confusion, (batch.labels, logits_BK.argmax(axis=1)), 1)
        self.within = [w + int((ranks < k).sum()) for w, k in zip(self.within, (1, TOP5), strict=True)]
        self.n += len(ranks)
        self.seconds += seconds
        self.calibrated += sum(h in self._calibration for h in batch.hashes)


class _Pairs:
    """What is counted of two artifacts' answers to the same images."""

    def __init__(self) -> None:
        self.lost = self.gained = self.flips = self.n = 0

    def add(self, new_B: Integers, old_B: Integers, labels_B: Integers) -> None:
        right, before = new_B == labels_B, old_B == labels_B
        self.lost += int((before & ~right).sum())
        self.gained += int((right & ~before).sum())
        self.flips += int((new_B != old_B).sum())
        self.n += len(labels_B)

    def against(self, config: EvalConfig) -> Against:
        difference = paired_counts(self.lost, self.gained, self.n)
        budget, flips = AccuracyBudget(points=config.max_drop), Flips(flips=self.flips, n=self.n)
        return Against(
            path=str(config.against),
            difference=difference,
            flips=flips,
            budget=budget,
            shown=budget.judge(difference, flips),
            accepted=budget.tolerates(difference, flips, strict=config.strict),
        )


def _other(config: EvalConfig, card: Card) -> Session:
    """Open the file to compare with."""
    assert config.against is not None
    other = read_artifact(config.against)
    if other.card.labels != card.labels or other.card.preprocessing != card.preprocessing:
        raise InputError(
            f"{config.against} has other labels or another preprocessing",
            fix="compare files of one model, or use `qdeploy diff`",
        )
    return open_session(other, config.engine, config.threads)


def _inferred(session: Session, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Floats, Floats, float]]:
    """Return each batch with its logits and probabilities ``[B, K]`` and the seconds that they took."""
    for batch in batches:
        begin = time.perf_counter()
        logits, probabilities = session.infer(batch.pixels)
        yield batch, logits, probabilities, time.perf_counter() - begin


def _scored(batch: Batch, logits_BK: Floats, probabilities_BK: Floats, card: Card, abstain: bool) -> Iterator[Scored]:
    answers, ranks, labels = logits_BK.argmax(axis=1), label_ranks(logits_BK, batch.labels), card.labels
    scores, cut = scores_of(logits_BK, card.temperature), card.cut if abstain else None
    for i, name in enumerate(batch.names):
        yield Scored(
            image=name,
            sha256=batch.hashes[i],
            label=labels[batch.labels[i]],
            predicted=labels[answers[i]],
            probability=float(probabilities_BK[i, answers[i]]),
            score=round(float(scores[i]), 4),
            unknown=cut is not None and bool(scores[i] < cut.threshold),
            rank=int(ranks[i]) + 1,
        )


def _share(right: int, n: int) -> tuple[float, tuple[float, float]]:
    """Return a share and its interval in percent."""
    low, high = wilson_interval(right / n, n)
    return round(100 * right / n, 4), (round(100 * low, 2), round(100 * high, 2))


def _class_scores(labels: tuple[str, ...], confusion: Integers) -> tuple[ClassScore, ...]:
    scores = []
    for k, label in enumerate(labels):
        right, n, answered = (int(v) for v in (confusion[k, k], confusion[k].sum(), confusion[:, k].sum()))
        wrong = np.where(np.arange(len(labels)) == k, 0, confusion[k])
        most = int(wrong.argmax())
        scores.append(
            ClassScore(
                label=label,
                n=n,
                precision=right / answered if answered else None,
                recall=right / n if n else None,
                f1=2 * right / (n + answered) if n + answered else None,
                confused_with=labels[most] if wrong[most] else None,
                confused=int(wrong[most]),
            )
        )
    return tuple(scores)


def _format_notes(config: EvalConfig, trained_on: tuple[str, ...] | None) -> list[str]:
    """Say that files are left out because the training left such files out."""
    if config.formats is not None or trained_on is None:
        return []
    return [f"only {', '.join(trained_on)} files are taken, as in the model's training; `formats` takes others"]


def lineage_notes(card: Card, images: LabelledImages, calibrated: int) -> list[str]:
    """Return notes on images that the model was trained, chosen or calibrated on."""
    trained = card.origin.dataset
    notes = []
    if not card.origin.training:
        notes.append("qdeploy did not train this model: whether it was trained on these images is not known")
    elif images.sha256 is not None and images.sha256 == trained.sha256:
        notes.append(f"{images.name} is the data set that the model was trained on; {_KNOWN[images.split]}")
    elif images.split == ALL and images.name == trained.name:
        notes.append(
            f"the model was trained on a data set of this name, {images.name}: if it is the same, most of these images "
            "were trained on, and the accuracy says little; use the test split"
        )
    if calibrated:
        notes.append(f"{calibrated} of these images calibrated this INT8 file, so it was fitted to them")
    return notes


_KNOWN = {
    "train": "these are its TRAINING images: the accuracy says nothing about new ones",
    "val": "its validation images chose the weights and the INT8 layers: the accuracy is a little too good",
    "test": "its test images took no part in training or calibration",
}
