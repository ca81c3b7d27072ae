"""Learning rate, momentum and the like of each step: a plain cosine or the paper's controller, by one interface."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import Any

from qdeploy.training import dynamics
from qdeploy.training.recipes import TrainConfig

MOMENTUM = 0.9
"""First beta of AdamW under the plain cosine."""
PAPER_MOMENTUM = 0.92
"""First beta that the paper builds AdamW with; the controller overwrites it after the first epoch."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Values of one optimizer step."""

    lr: float
    momentum: float
    """First beta of AdamW."""
    ema: float
    """Decay of the averaged weights; 0 keeps none."""
    label_smoothing: float
    auxiliary_weight: float
    """Weight of the SOTA head's auxiliary loss."""
    confidence: float
    """Confidence of the controller, 0 to 1; 0.5 without one, which leaves drop path at its base rate."""


class Schedule(ABC):
    """The settings of each step, which may depend on the validation accuracy of the epochs before."""

    @abstractmethod
    def settings(self, step: int) -> Settings:
        """Return the settings of a step, counted from 0 over the whole run."""

    def finish_epoch(self, epoch: int, val_top1: float) -> None:  # noqa: B027  (an open-loop schedule does nothing)
        """Take note of the validation accuracy in percent after an epoch."""

    event: str = ""
    """What the last epoch's end did to the rate: boost, reset or restart; empty if nothing."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep, as JSON-ready values."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Take a saved state back."""


class CosineSchedule(Schedule):
    """A short linear warm-up, then one cosine to ``min_lr``."""

    def __init__(self, config: TrainConfig, steps_per_epoch: int) -> None:
        self.config = config
        self.total = config.epochs * steps_per_epoch
        self.warmup = max(1, round(self.total * config.warmup_share))

    def settings(self, step: int) -> Settings:
        """Return the settings of a step."""
        rising = min(1.0, (step + 1) / self.warmup)
        progress = max(0.0, (step - self.warmup) / max(1, self.total - self.warmup))
        low, high = min(self.config.min_lr, self.config.lr), self.config.lr
        return Settings(
            lr=low + (high * rising - low) * 0.5 * (1.0 + math.cos(math.pi * progress)),
            momentum=MOMENTUM,
            ema=min(self.config.ema_decay, (1 + step) / (10 + step)),
            label_smoothing=self.config.label_smoothing,
            auxiliary_weight=0.4 - 0.2 * progress if self.config.auxiliary else 0.0,
            confidence=0.5,
        )


class ConfidenceSchedule(Schedule):
    """The paper's controller; the first epochs warm up from a tenth of the rate, until a boost ends that."""

    def __init__(self, config: TrainConfig, steps_per_epoch: int) -> None:
        self.config = config
        self.constants = constants_of(config)
        self.current = dynamics.initial_state(self.constants)
        self.steps_per_epoch = steps_per_epoch

    def settings(self, step: int) -> Settings:
        """Return the settings of a step."""
        s, c = self.current, self.config
        share = 1.0 if s.boosted else min(1.0, (step + 1) / (c.warmup_epochs * self.steps_per_epoch))
        return Settings(
            lr=s.lr * (0.1 + 0.9 * share),
            momentum=s.momentum if c.dynamic_momentum and step >= self.steps_per_epoch else PAPER_MOMENTUM,
            ema=s.ema if c.dynamic_ema else min(c.ema_decay, (1 + step) / (10 + step)),
            label_smoothing=s.label_smoothing if c.dynamic_smoothing else c.label_smoothing,
            auxiliary_weight=s.auxiliary_weight if c.auxiliary else 0.0,
            confidence=s.confidence,
        )

    def finish_epoch(self, epoch: int, val_top1: float) -> None:
        """Run the controller."""
        before, self.current = self.current, dynamics.step(self.constants, self.current, val_top1, epoch)
        self.event = ""
        if self.current.cycle_epoch == 0:
            over = self.constants.restarts and before.cycle_epoch + 1 >= self.constants.period
            self.event = "restart" if over else "reset"
        elif self.current.base_lr != before.base_lr:
            self.event = "boost"

    def state(self) -> dict[str, Any]:
        """Return the controller's state."""
        return asdict(self.current)

    def restore(self, state: dict[str, Any]) -> None:
        """Take the controller's state back."""
        self.current = dynamics.State(**state)


def constants_of(config: TrainConfig) -> dynamics.Dynamics:
    """Return the controller's constants, scaled to a run."""
    return dynamics.Dynamics.scaled(
        config.epochs - config.continued,
        config.lr,
        boosts=config.boosts,
        plateau_resets=config.plateau_resets,
        restarts=config.restarts,
    )


def build_schedule(config: TrainConfig, steps_per_epoch: int) -> Schedule:
    """Build the schedule a configuration names."""
    kinds = {"cosine": CosineSchedule, "confidence": ConfidenceSchedule}
    return kinds[config.schedule](
        replace(config, epochs=config.epochs - config.continued, continued=0), steps_per_epoch
    )
