"""Likely label errors of a data set, by confident learning.

The rule is that of Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", Journal
of Artificial Intelligence Research 70 (2021), section 3, with the ranking by normalized margin of section 3.2. It needs
the probabilities of a model that was not trained on the images it is asked about.

Array names: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.checks.evaluate import lineage_notes, require_finite
from qdeploy.core.artifact import read_artifact
from qdeploy.core.card import Card
from qdeploy.core.errors import DataError
from qdeploy.core.image_formats import formats_of_run
from qdeploy.core.metrics import Floats
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.progress import Progress
from qdeploy.data.labelled import ALL, LabelledImages, labelled_images
from qdeploy.runtime.session import open_session

Integers = NDArray[np.int64]
BATCH = 32
MANY = 0.2
"""Share of listed images from which the list says more of the model than of the labels."""


@dataclass(frozen=True, kw_only=True)
class ConfidentJoint:
    """What confident learning makes of probabilities and given labels."""

    thresholds: Floats
    """``[K]``: mean probability that a class's own images have for it; infinite for a class without images."""
    counts: Integers
    """``[K, K]``: images by given label (rows) and by the class that they confidently are (columns)."""
    likely: Integers
    """``[N]``: the class that each image confidently is; -1 where it reaches no class's threshold."""
    given: Integers
    """``[K]``: images of each given label."""

    @property
    def joint(self) -> NDArray[np.float64]:
        """``[K, K]``: the estimated share of images with a given label (rows) and a true one (columns); sums up to 1.

        Each row is scaled to the images that have its label. Where none of them is confidently anything, all are taken
        to be right.
        """
        rows = self.counts.sum(axis=1, keepdims=True)
        shares_KK = np.where(rows > 0, self.counts / np.maximum(rows, 1), np.eye(len(rows)))
        return shares_KK * self.given[:, None] / self.given.sum()


def confident_joint(probabilities_NK: Floats, labels_N: Integers) -> ConfidentJoint:
    """Count images by given label and by the class that they confidently are.

    An image is confidently of a class if its probability for it reaches the class's threshold; of several classes, of
    the most probable one (equations 1 and 2).

    Args:
        probabilities_NK: Of a model that was not trained on these images, in [0, 1].
        labels_N: The given labels, 0 to K - 1.
    """
    classes = probabilities_NK.shape[1]
    given_K = np.bincount(labels_N, minlength=classes)
    own_N = probabilities_NK[np.arange(len(labels_N)), labels_N].astype(np.float64)
    sums_K = np.bincount(labels_N, weights=own_N, minlength=classes)
    thresholds_K = np.where(given_K > 0, sums_K / np.maximum(given_K, 1), np.inf).astype(np.float32)
    reached_NK = np.where(probabilities_NK >= thresholds_K, probabilities_NK, -1.0)
    likely_N = np.where(reached_NK.max(axis=1) >= 0, reached_NK.argmax(axis=1), -1).astype(np.int64)
    counts_KK = np.zeros((classes, classes), np.int64)
    known_N = likely_N >= 0
    np.add.at(counts_KK, (labels_N[known_N], likely_N[known_N]), 1)
    return ConfidentJoint(thresholds=thresholds_K, counts=counts_KK, likely=likely_N, given=given_K)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Labelled images, and what a model that has not seen them says."""

    data: str
    by: str
    """What judged them, in words."""
    classes: tuple[str, ...]
    names: Sequence[str]
    """Paths; data set, split and number where an image is no file of its own."""
    hashes: Sequence[str]
    labels: Integers
    """``[N]``, positions in ``classes``."""
    probabilities: Floats
    """``[N, K]``"""
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """One image whose label is likely wrong."""

    image: str
    sha256: str
    """First 16 hexadecimal digits of the decoded image's SHA-256."""
    label: str
    likely: str
    """The class that it confidently is."""
    self_confidence: float
    """Probability of the given label, in [0, 1]."""
    likely_probability: float
    margin: float
    """Probability of the given label minus the largest of the others, in [-1, 1]; the list begins with the lowest."""


@dataclass(frozen=True, kw_only=True)
class Suspects:
    """The likely label errors of a data set."""

    data: str
    by: str
    n: int
    """Images that were judged."""
    top1: float
    """Share of them whose most probable class is the given one, in percent."""
    classes: tuple[str, ...]
    thresholds: tuple[float | None, ...]
    """Mean self-confidence of each class; None for one without images."""
    counts: tuple[tuple[int, ...], ...]
    """The confident joint: images by given label (rows) and by the class that they confidently are (columns)."""
    estimated_errors: float
    """Wrong labels that the data set is estimated to have."""
    suspects: tuple[Suspect, ...]
    """The most suspicious first."""
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def find_suspects(judged: Judged) -> Suspects:
    """List the images that are confidently of another class than their label says.

    Raises:
        DataError: If no image was judged.
    """
    p_NK, labels_N = judged.probabilities, judged.labels
    n = len(labels_N)
    if n == 0:
        raise DataError(f"{judged.data} has no usable image")
    found = confident_joint(p_NK, labels_N)
    rows_N = np.arange(n)
    own_N = p_NK[rows_N, labels_N]
    others_NK = p_NK.copy()
    others_NK[rows_N, labels_N] = -1.0
    margins_N = own_N - others_NK.max(axis=1)
    wrong = np.flatnonzero((found.likely >= 0) & (found.likely != labels_N))
    wrong = wrong[np.argsort(margins_N[wrong], kind="stable")]
    joint_KK = found.joint
    return Suspects(
        data=judged.data,
        by=judged.by,
        n=n,
        top1=100 * float((p_NK.argmax(axis=1) == labels_N).mean()),
        classes=judged.classes,
        thresholds=tuple(float(t) if np.isfinite(t) else None for t in found.thresholds),
        counts=tuple(map(tuple, found.counts.tolist())),
        estimated_errors=n * float(joint_KK.sum() - joint_KK.trace()),
        suspects=tuple(
            Suspect(
                image=judged.names[i],
                sha256=judged.hashes[i],
                label=judged.classes[labels_N[i]],
                likely=judged.classes[found.likely[i]],
                self_confidence=round(float(own_N[i]), 6),
                likely_probability=round(float(p_NK[i, found.likely[i]]), 6),
                margin=round(float(margins_N[i]), 6),
            )
            for i in wrong.tolist()
        ),
        notes=(*judged.notes, *([_TOO_LITTLE] if len(wrong) > MANY * n else [])),
        problems=judged.problems,
    )


_TOO_LITTLE = (
    "more than a fifth of the images are listed: what judged them knows too little of these classes; give more "
    "`epochs`, or a better `model`"
)


def judge_with_file(
    path: Path, data: str, formats: tuple[str, ...] | None = None, progress: Progress | None = None
) -> Judged:
    """Ask a model file about a data set; of the one that it was trained on, about the test images only.

    Args:
        path: A model file.
        data: Name, folder or archive of a data set with the file's labels.
        formats: Which image files are taken; by default those that the model's training took.
        progress: Called with images done and their total, first of reading, then of inference.

    Raises:
        ArtifactError: If the file cannot be opened, or an answer is not finite.
        DataError: If the data cannot be read, or have a class that the model has not.
    """
    artifact = read_artifact(path)
    card = artifact.card
    rules = card.preprocessing.taking(formats or formats_of_run(card.origin.training))
    images = _unseen(card, data, rules, progress)
    names: list[str] = []
    hashes: list[str] = []
    labels, probabilities = [np.empty(0, np.int64)], [np.empty((0, len(card.labels)), np.float32)]
    with open_session(artifact) as session:
        for batch in images.batches(BATCH):
            answers = session.infer(batch.pixels)[1]
            require_finite(path, batch, answers)
            names += batch.names
            hashes += batch.hashes
            labels.append(batch.labels)
            probabilities.append(np.array(answers))
            if progress:
                progress(len(names), images.count)
    return Judged(
        data=images.name,
        by=str(path),
        classes=card.labels,
        names=names,
        hashes=hashes,
        labels=np.concatenate(labels),
        probabilities=np.concatenate(probabilities),
        notes=(*images.notes, *(lineage_notes(card, images, 0) or [_seen(card)])),
        problems=tuple(images.problems),
    )


def _seen(card: Card) -> str:
    return (
        f"the model was trained on {card.origin.dataset.name}: of images that are in it, too, it knows the labels as "
        "they were, right or wrong, and does not suspect them"
    )


def _unseen(card: Card, data: str, rules: Preprocessing, progress: Progress | None) -> LabelledImages:
    """Return a data set's test images if the model was trained on it, else all there are."""
    try:
        test = labelled_images(data, "test", rules, card.labels, progress)
    except DataError:  # too few images to be cut, if nothing else
        return labelled_images(data, ALL, rules, card.labels, progress)
    same = card.origin.training and test.sha256 == card.origin.dataset.sha256
    return test if same else labelled_images(data, ALL, rules, card.labels, progress)
