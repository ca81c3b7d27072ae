"""The best weights of a run, and the rule that chooses them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from qdeploy.training.averaging import Weights, on_cpu
from qdeploy.training.learner import Score


@dataclass
class Best:
    """The best weights so far by validation top-1, in main memory."""

    val_images: int
    within_error: bool
    """Take the latest epoch within one standard error of the best, not the best. On a small validation split the
    highest of many noisy readings is a lucky one, and under a cosine the later weights are the better ones. The
    controller's late restarts make no later epoch better: there it is False."""
    latest: bool = False
    """Take the latest epoch: where every image is trained on, nothing may choose."""
    weights: Weights = field(default_factory=dict)
    epoch: int = 0
    """Epoch of the best weights, from 1; 0 before the first."""
    source: str = "raw"
    """Kind of the best weights: raw, average (EMA) or swa."""
    top1: float = 0.0
    top5: float = 0.0
    highest: float = 0.0
    """The highest top-1 of any epoch in percent."""

    def offer(self, model: nn.Module, score: Score, epoch: int, source: str) -> bool:
        """Keep these weights if they are the best, or as good; tell whether."""
        self.highest = max(self.highest, score.top1)
        if self.weights and not self.latest and score.top1 < self.highest - self._error():
            return False
        self.weights = on_cpu(model.state_dict())
        self.epoch, self.source, self.top1, self.top5 = epoch, source, score.top1, score.top5
        return True

    def _error(self) -> float:
        share = self.highest / 100
        return 100 * math.sqrt(share * (1 - share) / self.val_images) if self.within_error else 0.0

    def state(self) -> dict[str, Any]:
        """Return everything but the weights, as JSON-ready values."""
        return {name: getattr(self, name) for name in ("epoch", "source", "top1", "top5", "highest")}

    def restore(self, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take a saved state back."""
        self.weights = weights
        for name, value in state.items():
            setattr(self, name, value)
