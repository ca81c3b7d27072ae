"""The confidence-driven training dynamics of Qonstraint 5.9, as pure functions (paper, III.C and its log).

After each epoch the change of the validation accuracy is the *reward*; its sigmoid, the *confidence*, drives
the momentum, the EMA decay, the label smoothing, the drop path and, with boosts and resets, the base learning
rate under a cosine envelope with a warm restart. The constants are the paper's for 70 epochs at a peak
learning rate of 6e-4; ``Dynamics.scaled`` carries them to other lengths and rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

PAPER_EPOCHS = 70
PAPER_LR = 5e-4


@dataclass(frozen=True, kw_only=True)
class Dynamics:
    """Constants of the controller. Epochs count from 0, accuracies are in percent."""

    epochs: int = PAPER_EPOCHS
    lr0: float = PAPER_LR
    lr_min: float = 1e-4
    lr_max: float = 6e-4
    period: int = 60
    """Epochs of one cosine cycle; a warm restart follows."""
    ramp: int = 5
    """Epochs of the linear warm-up after a restart."""
    patience: int = 4
    reward_clamp: float = 5.0
    confidence_slope: float = 0.5
    boost_confidence: float = 0.7
    boost_gain: float = 0.065
    reset_fraction: float = 0.6
    momentum0: float = 0.90
    momentum_gain: float = 0.02
    momentum_plateau_step: float = 0.01
    momentum_floor: float = 0.85
    momentum_cap_early: float = 0.98
    momentum_cap_late: float = 0.995
    late_fraction: float = 0.75
    smoothing_max: float = 0.2
    smoothing_floor: float = 0.05
    auxiliary_from: float = 0.4
    auxiliary_to: float = 0.2
    reload_epochs: tuple[int, ...] = (30, 45, 60)
    """At the start of these epochs training goes back to the best weights."""
    swa_fraction: float = 0.85
    """Share of the run after which weights are averaged."""
    boosts: bool = True
    plateau_resets: bool = True
    restarts: bool = True
    """Switches of three mechanisms of the base rate; without restarts it stays at its minimum after the period."""

    @property
    def swa_start(self) -> int:
        """First epoch whose weights enter the SWA average: 60 of 70, where the restart begins to explore."""
        return math.ceil(self.swa_fraction * self.epochs)

    def phase(self, epoch: int) -> int:
        """Return the augmentation phase of an epoch: 1 in the first half of the run, then 2."""
        return 1 if epoch < self.epochs / 2 else 2

    @classmethod
    def scaled(
        cls, epochs: int, lr: float, *, boosts: bool = True, plateau_resets: bool = True, restarts: bool = True
    ) -> Dynamics:
        """Scale the epoch constants to a run's length and the rates to its base learning rate.

        At 70 epochs and 5e-4 they are exactly the paper's.
        """
        paper = cls()
        stretch = epochs / PAPER_EPOCHS
        return replace(
            paper,
            epochs=epochs,
            lr0=lr,
            lr_min=lr * (paper.lr_min / PAPER_LR),
            lr_max=lr * (paper.lr_max / PAPER_LR),
            period=max(1, round(paper.period * stretch)),
            ramp=max(1, round(paper.ramp * stretch)),
            patience=max(1, round(paper.patience * stretch)),
            reload_epochs=tuple(sorted({max(1, round(e * stretch)) for e in paper.reload_epochs})),
            boosts=boosts,
            plateau_resets=plateau_resets,
            restarts=restarts,
        )


@dataclass(frozen=True, kw_only=True)
class State:
    """What the controller knows after an epoch; what the next epoch trains with."""

    prev_val: float = 0.0
    best_val: float = -1.0
    confidence: float = 0.5
    momentum: float
    ema: float = 0.97
    """EMA decay per optimizer step."""
    base_lr: float
    lr: float
    """Learning rate of the next epoch."""
    label_smoothing: float
    auxiliary_weight: float
    since_boost: int = 0
    since_best: int = 0


def initial_state(d: Dynamics) -> State:
    """Return the state before the first epoch."""
    return State(
        momentum=d.momentum0,
        base_lr=d.lr0,
        lr=lr_at(d, d.lr0, 0),
        label_smoothing=max(d.smoothing_floor, d.smoothing_max * 0.5),
        auxiliary_weight=d.auxiliary_from,
    )


def lr_at(d: Dynamics, base_lr: float, epoch: int) -> float:
    """Return the learning rate of an epoch: the base under the cosine envelope, never below ``lr_min``."""
    cycle, t = divmod(epoch, d.period) if d.restarts else (0, min(epoch, d.period))
    ramp = 1.0 if cycle == 0 else _clip((t - 1) / d.ramp, 0.0, 1.0)
    return max(d.lr_min, base_lr * 0.5 * (1.0 + math.cos(math.pi * t / d.period)) * ramp)


def step(d: Dynamics, state: State, val_top1: float, epoch: int) -> State:
    """Update the state after an epoch.

    Args:
        d: The constants.
        state: The state the epoch was trained with.
        val_top1: Validation accuracy in percent after it.
        epoch: The epoch just finished, from 0.
    """
    reward = _clip(val_top1 - state.prev_val, -d.reward_clamp, d.reward_clamp)
    confidence = 1.0 / (1.0 + math.exp(-d.confidence_slope * reward))
    late = epoch >= d.late_fraction * d.epochs
    push = d.momentum_gain * reward if reward != 0 else -d.momentum_plateau_step
    cap = d.momentum_cap_late if late else d.momentum_cap_early
    base, since_boost, since_best = _base_lr(d, state, reward, confidence, val_top1)
    if d.restarts and (epoch + 1) % d.period == 0:
        base = d.lr_max
    progress = min(1.0, (epoch + 1) / max(1, d.epochs - 1))
    return State(
        prev_val=val_top1,
        best_val=max(state.best_val, val_top1),
        confidence=confidence,
        momentum=_clip(state.momentum + push, d.momentum_floor, cap),
        ema=_clip(0.96 + 0.02 * confidence, 0.90, 0.999),
        base_lr=base,
        lr=lr_at(d, base, epoch + 1),
        label_smoothing=d.smoothing_floor if late else max(d.smoothing_floor, d.smoothing_max * (1 - confidence)),
        auxiliary_weight=d.auxiliary_from + (d.auxiliary_to - d.auxiliary_from) * progress,
        since_boost=since_boost,
        since_best=since_best,
    )


def _base_lr(d: Dynamics, s: State, reward: float, confidence: float, val: float) -> tuple[float, int, int]:
    since_best = 0 if val > s.best_val else s.since_best + 1
    since_boost = s.since_boost + 1
    if d.boosts and reward > 0 and confidence > d.boost_confidence:
        return min(d.lr_max, s.base_lr * (1.0 + d.boost_gain * reward)), 0, since_best
    if d.plateau_resets and since_boost >= d.patience and since_best >= d.patience:
        return max(s.base_lr, d.reset_fraction * d.lr_max), 0, 0
    return s.base_lr, since_boost, since_best


def _clip(value: float, low: float, high: float) -> float:
    return min(high, max(low, value))
