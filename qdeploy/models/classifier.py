"""The interface of a model of any family, as training, export and the registry use it."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from qdeploy.models.layers import DropPath


class ModelConfig(Protocol):
    """Everything that decides the shape of a model."""

    @property
    def family(self) -> str:
        """Which of the registry's families builds it."""

    @property
    def num_classes(self) -> int:
        """Length of the logits."""

    @property
    def input_size(self) -> int:
        """Height and width of the image in pixels."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""

    def build(self) -> Classifier:
        """Build a freshly initialised model."""


class Paths(NamedTuple):
    """Logits ``[B, K]`` of the whole model, and of the parts that have a training loss of their own."""

    logits: Tensor
    transformer: Tensor | None
    auxiliary: Tensor | None


class Classifier(nn.Module):
    """Normalised images ``[B, 3, S, S]`` in, logits ``[B, K]`` out."""

    config: ModelConfig

    def forward(self, image: Tensor) -> Tensor:
        """Classify normalised images ``[B, 3, S, S]``; the result is ``[B, K]``."""
        raise NotImplementedError

    def forward_paths(self, image: Tensor, labels: Tensor | None = None) -> Paths:
        """Return the logits and those of the paths that have a training loss of their own; most models have none."""
        return Paths(self(image), None, None)

    @property
    def feature_module(self) -> nn.Module | None:
        """The part whose output are the features that are classified; None where a library's network hides it."""
        return None

    @property
    def drop_path(self) -> float | None:
        """The largest rate of its drop paths now, in [0, 1]; None if it has none."""
        return max((part.rate for part in self.modules() if isinstance(part, DropPath)), default=None)

    def set_confidence(self, confidence: float) -> None:
        """Let every drop path follow the controller's confidence in [0, 1]."""
        for module in self.modules():
            if isinstance(module, DropPath):
                module.set_confidence(confidence)
