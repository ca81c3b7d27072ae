"""What each step trains with: the plain cosine, or the paper's controller, behind one interface."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from qdeploy.training import dynamics
from qdeploy.training.recipes import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Values of one optimizer step."""

    lr: float
    momentum: float
    """First beta of AdamW."""
    ema: float
    """Decay of the averaged weights."""
    label_smoothing: float
    auxiliary_weight: float
    """Weight of the SOTA head's auxiliary loss."""
    confidence: float


class Schedule(ABC):
    """Gives the settings of a step and learns from each epoch's validation accuracy."""

    @abstractmethod
    def settings(self, step: int) -> Settings:
        """Give the settings of a step, counted from 0 over the whole run."""

    @abstractmethod
    def finish_epoch(self, epoch: int, val_top1: float) -> None:
        """Take note of the validation accuracy in percent after an epoch."""


class CosineSchedule(Schedule):
    """A short linear warm-up, then one cosine to zero."""

    def __init__(self, config: TrainConfig, steps_per_epoch: int) -> None:
        self.config = config
        self.total = config.epochs * steps_per_epoch
        self.warmup = max(1, round(self.total * config.warmup_share))

    def settings(self, step: int) -> Settings:
        """Give the settings of a step."""
        rising = min(1.0, (step + 1) / self.warmup)
        progress = max(0.0, (step - self.warmup) / max(1, self.total - self.warmup))
        return Settings(
            lr=self.config.lr * rising * 0.5 * (1.0 + math.cos(math.pi * progress)),
            momentum=0.9,
            ema=min(self.config.ema_decay, (1 + step) / (10 + step)),
            label_smoothing=self.config.label_smoothing,
            auxiliary_weight=0.4 - 0.2 * progress,
            confidence=0.5,
        )

    def finish_epoch(self, epoch: int, val_top1: float) -> None:
        """Change nothing: this schedule is open-loop."""


class ConfidenceSchedule(Schedule):
    """The paper's controller; the first epoch warms up from a tenth of the rate."""

    def __init__(self, config: TrainConfig, steps_per_epoch: int) -> None:
        self.constants = dynamics.Dynamics.scaled(config.epochs, config.lr)
        self.state = dynamics.initial_state(self.constants)
        self.steps_per_epoch = steps_per_epoch

    def settings(self, step: int) -> Settings:
        """Give the settings of a step."""
        s = self.state
        rising = 0.1 + 0.9 * min(1.0, step / self.steps_per_epoch)
        return Settings(
            lr=s.lr * rising,
            momentum=s.momentum,
            ema=s.ema,
            label_smoothing=s.label_smoothing,
            auxiliary_weight=s.auxiliary_weight,
            confidence=s.confidence,
        )

    def finish_epoch(self, epoch: int, val_top1: float) -> None:
        """Run the controller."""
        self.state = dynamics.step(self.constants, self.state, val_top1, epoch)


def build_schedule(config: TrainConfig, steps_per_epoch: int) -> Schedule:
    """Build the schedule a configuration names."""
    kinds = {"cosine": CosineSchedule, "confidence": ConfidenceSchedule}
    return kinds[config.schedule](config, steps_per_epoch)
