"""The contract of a source: what an export asks of whatever its float graph comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qdeploy.core.card import DatasetInfo, ModelInfo, Origin
from qdeploy.core.errors import QdeployError, VerdictError
from qdeploy.core.machine import versions
from qdeploy.core.metrics import Floats
from qdeploy.core.progress import Note
from qdeploy.data.dataset import Dataset
from qdeploy.export.graph.parity import FP32_TOLERANCE


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What one form of the model gives for some images."""

    form: str
    """Name of the form: ``trained``, ``folded``, a file's name."""
    output: str
    """``logits`` or ``probabilities``."""
    values: Floats
    """``[N, K]``"""


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """A float model from anywhere; the pipeline compares, seals and writes what it gives."""

    model: ModelInfo
    training: dict[str, Any]
    """Configuration of the training, without paths of this machine; empty for a model from elsewhere."""
    created: str
    """When it was trained or, if that is unknown, exported; ISO 8601."""
    git: dict[str, str | bool] | None
    sha256: str
    """SHA-256 of the weights' file or model file."""

    @property
    @abstractmethod
    def graph(self) -> onnx.ModelProto:
        """The float graph from ``image`` ``[batch, S, S, 3]`` to ``logits`` and ``probabilities`` ``[batch, K]``."""

    @property
    def rounding(self) -> float:
        """Largest difference between a reference and the graph, relative to the largest answer."""
        return FP32_TOLERANCE

    def refusal(self, error: VerdictError) -> QdeployError:
        """Return what is raised where the graph does not give what the model gave."""
        return error

    @abstractmethod
    def references(self, pixels_NSSC: NDArray[np.uint8]) -> list[Reference]:
        """Return what the model gives for images: first as it came, then each form on the way to the graph."""

    def finetuned(self, dataset: Dataset, epochs: int, note: Note) -> onnx.ModelProto | None:
        """Return the same graph with weights that expect INT8; None if there is nothing to train."""
        return None

    def origin(self, dataset: Dataset) -> Origin:
        """Return what the card says of where the model comes from."""
        images = {split: len(images) for split, images in dataset.splits.items()}
        return Origin(
            training=self.training,
            created=self.created,
            dataset=DatasetInfo(name=dataset.name, sha256=dataset.sha256, images=images),
            git=self.git,
            versions=versions("qdeploy", "torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow"),
            parent_sha256=self.sha256,
        )
