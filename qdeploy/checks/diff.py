"""The comparison of two artifacts: their cards, their graphs, and their accuracy on the same real images.

Array names: N images, K labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.artifact import Artifact, read_artifact
from qdeploy.core.card import Card
from qdeploy.core.errors import DataError, MissingDependencyError
from qdeploy.core.files import sha256_of
from qdeploy.core.image_formats import formats_of_run
from qdeploy.core.intervals import PairedDifference, mcnemar_p
from qdeploy.core.metrics import Floats, Parity, measure, paired_difference
from qdeploy.core.onnx_bytes import operator_counts
from qdeploy.core.progress import Progress
from qdeploy.core.words import rounded
from qdeploy.data.embedded import FASHION_CLASSES
from qdeploy.data.embedded import NAME as EMBEDDED
from qdeploy.data.labelled import LabelledImages, labelled_images
from qdeploy.runtime.session import engines_for, open_session

BATCH = 64
SIGNIFICANT = 0.05
SUBJECTS = (
    "file",
    "model",
    "labels",
    "preprocessing",
    "precision",
    "calibration",
    "training",
    "data",
    "versions",
    "accuracy",
    "confidence",
    "graph",
)
"""Subjects of a comparison, in the order in which they are reported."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One field that differs."""

    subject: str
    """One of ``SUBJECTS``."""
    field: str
    a: Any
    b: Any


@dataclass(frozen=True, kw_only=True)
class ClassFlips:
    """The images of one label that exactly one of the two gets right."""

    label: str
    lost: int
    """Right with A, wrong with B."""
    gained: int
    changed: int
    """Answers that differ, both wrong included."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Both models on the same labelled images."""

    data: str
    split: str
    engines: tuple[str, str]
    parity: Parity
    """Agreement of B's logits with A's."""
    top1: tuple[float, float]
    """Top-1 accuracy of A and B, in percent."""
    difference: PairedDifference
    """Top-1 of B minus A, in points."""
    lost: int
    gained: int
    p_value: float
    """Exact two-sided p-value of McNemar's test on ``difference``."""
    flips: tuple[ClassFlips, ...]
    """Changed answers of each label that has any."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "parity": self.parity.to_dict()}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The whole comparison."""

    a: str
    b: str
    changes: tuple[Change, ...]
    same: tuple[str, ...]
    """Subjects in which nothing differs."""
    meaning: tuple[str, ...]
    """What it comes down to, in words."""
    numbers: Numbers | None
    """None if there are no images for both; ``meaning`` says why."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of ``qdeploy diff``."""
        return {**asdict(self), "numbers": self.numbers.to_dict() if self.numbers else None}


def diff(
    a: Path, b: Path, data: str | None = None, split: str = "test", progress: Progress | None = None
) -> Difference:
    """Compare two model files.

    Args:
        a: The one that the other is compared with.
        b: The other.
        data: Images for the numbers, as for ``load_dataset``; by default the embedded set where the labels fit.
        split: Split of the data set.
        progress: Called while images are read.

    Raises:
        ArtifactError: If one is no artifact.
        DataError: If the given data does not fit both.
    """
    first, second = read_artifact(a), read_artifact(b)
    changes = tuple(_changes(first, second))
    different = {c.subject for c in changes}
    meaning = list(_meaning(first, second, different))
    numbers = None
    together = set(first.card.labels) == set(second.card.labels)
    if data is not None or (together and set(first.card.labels) == set(FASHION_CLASSES)):
        if not together:
            raise DataError(
                f"{a} and {b} have different labels, so their answers cannot be compared", fix="leave out `data`"
            )
        try:
            numbers = _numbers(first, second, data or EMBEDDED, split, progress)
            meaning.append(_verdict(numbers))
        except MissingDependencyError as error:
            meaning.append(f"not run on images: {error}")
    else:
        meaning.append("not run on images: " + ("no data set is given" if together else "the labels differ"))
    return Difference(
        a=str(a),
        b=str(b),
        changes=changes,
        same=tuple(s for s in SUBJECTS if s not in different),
        meaning=tuple(meaning),
        numbers=numbers,
    )


def _changes(a: Artifact, b: Artifact) -> Iterator[Change]:
    """Compare subject by subject and field by field; what one lacks is None there."""
    first, second = _facts(a), _facts(b)
    for subject in SUBJECTS:
        left, right = first[subject], second[subject]
        for field in dict.fromkeys([*left, *right]):
            if left.get(field) != right.get(field):
                yield Change(subject=subject, field=field, a=left.get(field), b=right.get(field))


def _facts(artifact: Artifact) -> dict[str, Mapping[str, Any]]:
    """Return everything that an artifact says, by subject and field."""
    card, origin = artifact.card, artifact.card.origin
    made = {"commit": (origin.git or {}).get("commit"), **origin.versions}
    precision = {
        "precision": card.precision,
        "target": card.target,
        "layers in float": sorted(card.float_layers),
        "engine": artifact.engine.describe() if artifact.engine else None,
    }
    rules = {k: v for k, v in card.preprocessing.to_dict().items() if k != "sha256"}
    model = {k: v for k, v in card.model.to_dict().items() if k != "config"}
    return {
        "file": {"size_bytes": len(artifact.data), "sha256": artifact.sha256, "name": card.name},
        "model": {**model, **{f"config.{k}": v for k, v in card.model.config.items()}},
        "labels": {"labels": list(card.labels)},
        "preprocessing": rules,
        "precision": precision,
        "calibration": _calibration_facts(card),
        "training": {**origin.training, "created": origin.created},
        "data": asdict(origin.dataset),
        "versions": made,
        "accuracy": card.accuracy.to_dict() if card.accuracy else {},
        "confidence": _confidence_facts(card),
        "graph": {} if artifact.engine else operator_counts(artifact.data),
    }


def _confidence_facts(card: Card) -> dict[str, Any]:
    """Return temperature, threshold and how both were found; what was measured before and after, number by number."""
    facts = card.confidence.to_dict() if card.confidence else {}
    measured = {name: facts.pop(name, None) or {} for name in ("before", "after")}
    if reference := facts.pop("reference", None):
        facts["reference_sha256"] = sha256_of(json.dumps(reference).encode())
    return facts | {f"{name}.{k}": v for name, values in measured.items() for k, v in values.items()}


def _calibration_facts(card: Card) -> dict[str, Any]:
    facts: dict[str, Any] = {"qat_epochs": card.qat_epochs}
    if record := card.calibration:
        digest = sha256_of("\n".join(sorted(record.images)).encode())
        facts |= {"method": record.method, "images": len(record.images), "images_sha256": digest, "seed": record.seed}
        facts |= {"random": True} if record.random else {}
    if card.float_choice:
        facts["float_choice"] = asdict(card.float_choice)
    return facts


def _meaning(a: Artifact, b: Artifact, different: set[str]) -> Iterator[str]:
    yield _relation(a, b, different)
    if "labels" in different:
        same = set(a.card.labels) == set(b.card.labels)
        yield (
            "the labels are the same in another order: an index means another class"
            if same
            else "the labels differ: the answers cannot be compared"
        )
    if "preprocessing" in different:
        yield "images are prepared differently: the same image is another input"
    if {"training", "data"} & different and a.card.model.name == b.card.model.name:
        yield "trained apart: " + ", ".join(sorted({"training", "data"} & different)) + " differ"


def _relation(a: Artifact, b: Artifact, different: set[str]) -> str:
    """Return in one sentence how the two files are related."""
    parents = [x.engine.source_sha256 if x.engine else x.card.origin.parent_sha256 for x in (a, b)]
    if a.sha256 == b.sha256:
        return "A and B are the same file"
    if parents[1] in a.known_as:
        return f"B was made from A: its {b.card.precision} form"
    if parents[0] in b.known_as:
        return f"A was made from B: its {a.card.precision} form"
    if parents[0] == parents[1] and parents[0]:
        return "A and B were made from the same weights"
    if "model" in different:
        return f"A and B are different models: {a.card.model.name} and {b.card.model.name}"
    return f"A and B are the same architecture, {a.card.model.name}, with different weights"


def _numbers(a: Artifact, b: Artifact, data: str, split: str, progress: Progress | None) -> Numbers:
    labels, formats = a.card.labels, formats_of_run(a.card.origin.training)  # others would be cut into other splits
    rules = [x.card.preprocessing.taking(formats) for x in (a, b)]
    images = labelled_images(data, split, rules[0], labels, progress)
    first, answers, engine_a = _logits(a, images)
    if rules[0] != rules[1]:
        images = labelled_images(data, split, rules[1], labels, progress)
    second, _, engine_b = _logits(b, images)
    second = second[:, [b.card.labels.index(label) for label in labels]]
    before, after = (logits.argmax(axis=1) for logits in (first, second))
    lost = (before == answers) & (after != answers)
    gained = (before != answers) & (after == answers)
    counts = [np.bincount(answers[mask], minlength=len(labels)) for mask in (lost, gained, before != after)]
    return Numbers(
        data=data,
        split=split,
        engines=(engine_a, engine_b),
        parity=measure(first, second),
        top1=(round(100 * float((before == answers).mean()), 4), round(100 * float((after == answers).mean()), 4)),
        difference=paired_difference(second, first, answers),
        lost=int(lost.sum()),
        gained=int(gained.sum()),
        p_value=mcnemar_p(int(lost.sum()), int(gained.sum())),
        flips=tuple(
            ClassFlips(label=label, lost=int(down), gained=int(up), changed=int(changed))
            for label, down, up, changed in zip(labels, *counts, strict=True)
            if changed
        ),
    )


def _logits(artifact: Artifact, images: LabelledImages) -> tuple[Floats, NDArray[np.int64], str]:
    """Run a model and give its logits ``[N, K]``, the true labels ``[N]``, and the engine."""
    engine = next(iter(engines_for(artifact)), "ort")
    logits, answers = [], []
    with open_session(artifact, engine) as session:
        for batch in images.batches(BATCH):
            logits.append(session.infer(batch.pixels)[0])
            answers.append(batch.labels)
    if not logits:
        raise DataError(f"{images.name} has no usable image in {images.split}")
    return np.concatenate(logits), np.concatenate(answers), session.engine


def _verdict(numbers: Numbers) -> str:
    """Return in one sentence what the accuracies show: better, worse, or no difference."""
    d, n = numbers.difference, numbers.parity.n
    change = f"top-1 {numbers.top1[0]:.2f} % -> {numbers.top1[1]:.2f} % on {n} images of {numbers.data}"
    if numbers.parity.flips == 0:
        return f"{change}: every answer is the same"
    p = "p < 0.001" if numbers.p_value < 0.001 else f"p = {numbers.p_value:.3f}"
    interval = f"{rounded(d.points, 2, '+')} +- {d.margin95:.2f} points, McNemar {p}"
    if numbers.p_value >= SIGNIFICANT:
        return f"{change}: {interval}: no difference in accuracy that these images could show"
    return f"{change}: {interval}: B is {'better' if d.points > 0 else 'worse'}"
