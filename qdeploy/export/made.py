"""A finished graph: sealed with its card, opened, and measured on validation and test images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qdeploy.core.artifact import Artifact, Card, Goldens
from qdeploy.core.errors import InputError
from qdeploy.core.machine import versions
from qdeploy.core.metrics import Floats, topk_percent, wilson_interval
from qdeploy.data.dataset import Dataset, Split
from qdeploy.export.parity import Parity, measure, run_session
from qdeploy.export.quantize import encoding_for
from qdeploy.export.seal import sealed_bytes
from qdeploy.runtime.session import Session, open_session

GOLDEN_IMAGES = 4
PARITY_IMAGES = 512

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What to make."""

    int8: bool = False
    target: str = "x86"
    """Encoding of the INT8 file: x86 or tensorrt."""
    calibration_images: int = 256
    """Images of the training split whose ranges set the scales."""
    max_drop: float = 1.0
    """Points of validation top-1 that INT8 may cost."""
    choice_runs: int = 300
    """Timed runs of each candidate when choosing which layers stay in float."""

    def __post_init__(self) -> None:
        encoding_for(self.target)
        if not 1 <= self.calibration_images <= 100_000:
            raise InputError(f"--calibration-images must be between 1 and 100000, found {self.calibration_images}")
        if not 0 <= self.max_drop <= 100:
            raise InputError(f"--max-drop must be between 0 and 100 points, found {self.max_drop}")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every step needs."""

    record: dict[str, Any]
    """The run's ``run.json``."""
    dataset: Dataset
    name: str
    config: ExportConfig
    note: Note

    @property
    def parity_pixels(self) -> NDArray[np.uint8]:
        """The validation images that the steps are compared on."""
        return self.dataset.splits["val"].pixels[:PARITY_IMAGES]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A graph with everything measured of it."""

    model: onnx.ModelProto
    data: bytes
    """The sealed file."""
    card: Card
    session: Session
    parity: Parity
    """Against the step before."""
    parity_logits: Floats
    test_logits: Floats
    file: str
    float_layers: str = ""
    """The set of layers left in float by INT8, in words."""


def open_graph(model: onnx.ModelProto, card: Card) -> Session:
    """Open a graph that is not on disk yet."""
    return open_session(Artifact(Path(f"the {card.precision} graph"), sealed_bytes(model, card), card), selftest=False)


def finish(
    work: Work,
    model: onnx.ModelProto,
    card: Card,
    reference: Floats,
    file: str,
    golden_db: float,
    float_layers: str = "",
) -> Made:
    """Open a graph, compare it with the step before, measure it, and write what was found into its card.

    Args:
        work: The export.
        model: The graph.
        card: Its card, without accuracy and goldens.
        reference: Logits of the step before on ``work.parity_pixels``.
        file: Name of the file.
        golden_db: Least agreement with the goldens that a runtime must reach.
        float_layers: For INT8, what stays in float, in words.
    """
    session = open_graph(model, card)
    logits = run_session(session, work.parity_pixels)
    test = work.dataset.splits["test"]
    test_logits = run_session(session, test.pixels)
    images = work.dataset.splits["val"].pixels[:GOLDEN_IMAGES]
    goldens = Goldens(images=images, logits=session.infer(images)[0], min_sqnr_db=golden_db)
    card = replace(card, accuracy=_accuracy(test_logits, test), goldens=goldens)
    return Made(
        model=model,
        data=sealed_bytes(model, card),
        card=card,
        session=session,
        parity=measure(reference, logits),
        parity_logits=logits,
        test_logits=test_logits,
        file=file,
        float_layers=float_layers,
    )


def first_card(work: Work, weights_sha256: str) -> Card:
    """Give the card of the float graph, before anything is measured."""
    record, dataset = work.record, work.dataset
    training = {k: v for k, v in record["config"].items() if k != "data"}  # data may be a local path
    size = dataset.preprocessing.size
    nothing = Goldens(
        images=np.zeros((0, size, size, 3), np.uint8),
        logits=np.zeros((0, len(dataset.classes)), np.float32),
        min_sqnr_db=0.0,
    )
    return Card(
        name=work.name,
        model=record["model"],
        labels=dataset.classes,
        preprocessing=dataset.preprocessing,
        precision="fp32",
        target="float",
        float_layers=(),
        lineage={
            "training": training,
            "trained": record["created"],
            "dataset": {"name": dataset.name, "sha256": dataset.sha256, "images": record["dataset"]["images"]},
            "git": record["git"],
            "versions": versions("qdeploy", "torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow"),
            "parent_sha256": weights_sha256,
        },
        accuracy={},
        goldens=nothing,
    )


def _accuracy(logits: Floats, split: Split) -> dict[str, Any]:
    top1 = topk_percent(logits, split.labels, 1)
    low, high = wilson_interval(top1 / 100, len(split))
    return {
        "split": "test",
        "top1": round(top1, 4),
        "top5": round(topk_percent(logits, split.labels, 5), 4),
        "n": len(split),
        "ci95": [round(low * 100, 2), round(high * 100, 2)],
    }
