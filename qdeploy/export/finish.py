"""A finished graph: sealed with its card, opened, and measured on validation and test images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qdeploy.core.artifact import Artifact, Card, Goldens
from qdeploy.core.lineage import git_commit
from qdeploy.core.machine import versions
from qdeploy.core.metrics import Floats, Parity, measure, topk_percent, wilson_interval
from qdeploy.data.dataset import Dataset, Split
from qdeploy.export.config import ExportConfig, Note, Progress
from qdeploy.export.graph.parity import require_same_in_batches, run_session
from qdeploy.export.graph.seal import sealed_bytes
from qdeploy.runtime.session import Session, open_session

GOLDEN_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every step needs."""

    record: dict[str, Any]
    """The run's ``run.json``."""
    dataset: Dataset
    name: str
    config: ExportConfig
    note: Note
    tick: Progress
    parity_pixels: NDArray[np.uint8]
    """The validation images that the steps are compared on."""


@dataclass(frozen=True, kw_only=True, eq=False)
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
    require_same_in_batches(file, session, work.parity_pixels, logits)
    test = work.dataset.splits["test"]
    test_logits = run_session(session, test.pixels)
    images = work.parity_pixels[:GOLDEN_IMAGES]
    goldens = Goldens.of(images, session.infer(images)[0], golden_db)
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
    nothing = Goldens(pixels=b"", shape=(0, size, size, 3), rows=(), min_sqnr_db=0.0)
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


def record_without_run(name: str, family: str, params: int, macs: int, dataset: Dataset) -> dict[str, Any]:
    """Describe a model that no run of qdeploy trained, as ``run.json`` describes one."""
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": {},
        "git": git_commit(),
        "model": {
            "name": name,
            "family": family,
            "params": params,
            "macs": macs,
            "input_size": dataset.preprocessing.size,
            "num_classes": len(dataset.classes),
            "config": {},
        },
        "dataset": {"images": {split: len(images) for split, images in dataset.splits.items()}},
    }


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
