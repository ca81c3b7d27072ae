"""The last step of every graph: sealed with its card, opened, measured on validation and test images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from qdeploy.core.artifact import Artifact
from qdeploy.core.card import Accuracy, Card, Goldens
from qdeploy.core.confidence import Confidence
from qdeploy.core.intervals import PairedDifference, wilson_interval
from qdeploy.core.metrics import Floats, Parity, measure, paired_difference, topk_percent
from qdeploy.core.progress import Note, StepProgress
from qdeploy.data.dataset import Dataset, Split
from qdeploy.export.confidence import Diagram, Labelled, confidence_images, confidence_of
from qdeploy.export.config import ExportConfig
from qdeploy.export.graph.finite import called, require_finite
from qdeploy.export.graph.parity import Answers, require_same_in_batches
from qdeploy.export.graph.seal import sealed_bytes
from qdeploy.export.graph.temperature import with_temperature
from qdeploy.export.sources.source import Source
from qdeploy.runtime.session import Session, open_session

GOLDEN_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every step needs."""

    dataset: Dataset
    name: str
    config: ExportConfig
    note: Note
    progress: StepProgress
    parity_pixels: NDArray[np.uint8]
    """The validation images that the steps are compared on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """A graph with everything measured of it."""

    model: onnx.ModelProto
    """The graph without its temperature: what other forms are made of."""
    data: bytes
    """The sealed file."""
    card: Card
    session: Session
    answers: Answers
    """What it gave so far; its logits are those of ``session``."""
    parity: Parity
    """Agreement of the graph's logits with those of the step before."""
    parity_logits: Floats
    test_logits: Floats
    file: str
    float_layers: str = ""
    """The set of layers left in float by INT8, in words."""
    diagram: Diagram | None = None
    """How far its probabilities can be taken at their word; None without labelled images."""


def open_graph(model: onnx.ModelProto, card: Card) -> Session:
    """Open a graph that is not on disk yet."""
    return open_session(Artifact(Path(f"the {card.precision} graph"), sealed_bytes(model, card), card), selftest=False)


def finish(
    work: Work,
    model: onnx.ModelProto,
    card: Card,
    reference_NK: Floats,
    file: str,
    golden_db: float,
    *,
    output: str = "logits",
    float_layers: str = "",
    fp32: Made | None = None,
) -> Made:
    """Open a graph, compare it with the step before, measure it, and write what was found into its card.

    Args:
        work: The export.
        model: The graph.
        card: The graph's card, without accuracy and goldens.
        reference_NK: What the step before gives for ``work.parity_pixels``.
        file: Name of the file.
        golden_db: Least agreement with the goldens that a runtime must reach, in decibels.
        output: Which output the reference is compared with: ``logits`` or ``probabilities``.
        float_layers: For INT8, what stays in float, in words.
        fp32: What its accuracy is compared with; None for the fp32 file itself.

    Raises:
        InputError: If the fp32 file's answer to a test image is not finite.
    """
    session = open_graph(model, card)
    answers = Answers(session)
    logits, probabilities = answers.outputs(work.parity_pixels)
    require_same_in_batches(file, session, work.parity_pixels, logits)
    test = work.dataset.splits["test"]
    test_logits = answers.logits(test.pixels)
    if fp32 is None:
        require_finite(model, test_logits, test.pixels, partial(called, "test", test.hashes, 0))
    images = work.parity_pixels[:GOLDEN_IMAGES]
    goldens = Goldens.of(images, session.infer(images)[0], golden_db)
    against = paired_difference(test_logits, fp32.test_logits, test.labels) if fp32 else None
    accuracy = None if work.dataset.generated else _accuracy(test_logits, test, against)
    card = replace(card, accuracy=accuracy, goldens=goldens, confidence=None)
    diagram, deployed = None, model
    if not work.dataset.generated:
        confidence, diagram = _confidence(work, answers, Labelled(logits=test_logits, labels=test.labels))
        card = replace(card, confidence=confidence)
        deployed = with_temperature(model, confidence.temperature)
        if deployed is not model:
            session.close()  # the logits of both are the same
            session = answers.session = open_graph(deployed, card)
    return Made(
        model=model,
        data=sealed_bytes(deployed, card),
        card=card,
        session=session,
        answers=answers,
        parity=measure(reference_NK, logits if output == "logits" else probabilities),
        parity_logits=logits,
        test_logits=test_logits,
        file=file,
        float_layers=float_layers,
        diagram=diagram,
    )


def _confidence(work: Work, answers: Answers, test: Labelled) -> tuple[Confidence, Diagram | None]:
    images = confidence_images(work.dataset.splits["val"], work.config.coverage)
    val = Labelled(logits=answers.logits(images.pixels), labels=images.labels)
    return confidence_of(val, test, work.dataset.classes, work.config.coverage)


def first_card(work: Work, source: Source) -> Card:
    """Return the card of the float graph, before anything is measured."""
    dataset = work.dataset
    size = dataset.preprocessing.size
    return Card(
        name=work.name,
        model=source.model,
        labels=dataset.classes,
        preprocessing=dataset.preprocessing,
        precision="fp32",
        target="float",
        float_layers=(),
        origin=source.origin(dataset),
        accuracy=None,
        goldens=Goldens(pixels=b"", shape=(0, size, size, 3), rows=(), min_sqnr_db=0.0),
    )


def _accuracy(logits_NK: Floats, split: Split, against_fp32: PairedDifference | None) -> Accuracy:
    top1 = topk_percent(logits_NK, split.labels, 1)
    low, high = wilson_interval(top1 / 100, len(split))
    return Accuracy(
        split="test",
        top1=round(top1, 4),
        top5=round(topk_percent(logits_NK, split.labels, 5), 4),
        n=len(split),
        ci95=(round(low * 100, 2), round(high * 100, 2)),
        against_fp32=against_fp32,
    )
