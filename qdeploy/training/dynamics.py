"""The confidence-driven training dynamics of Qonstraint 5.9, as pure functions (paper, III.C and its log).

After each epoch the change of the validation accuracy is the *reward*; its sigmoid, the *confidence*, drives
the momentum, the EMA decay, the label smoothing and the drop path. The learning rate is a base under a cosine;
boosts, plateau resets and the warm restart take the rate *in use* and make of it the new base, so that a base can
fall as well as rise. The constants are the paper's for 70 epochs at a peak learning rate of 6e-4;
``Dynamics.scaled`` carries them to other lengths and rates.
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
    patience: int = 4
    """Epochs in a row without growth, i.e. without a positive reward, before a plateau reset."""
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
    """Switches of three mechanisms of the rate; without restarts it stays at its minimum after the period."""

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

        At 70 epochs and 5e-4 they are exactly the paper's. The patience stays: how many epochs without growth are
        no chance is a matter of the noise of a validation, not of the run's length.
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
            reload_epochs=tuple(sorted({max(1, round(e * stretch)) for e in paper.reload_epochs})),
            boosts=boosts,
            plateau_resets=plateau_resets,
            restarts=restarts,
        )


@dataclass(frozen=True, kw_only=True)
class State:
    """What the controller knows after an epoch; what the next epoch trains with."""

    prev_val: float = 0.0
    confidence: float = 0.5
    momentum: float
    ema: float = 0.97
    """EMA decay per optimizer step."""
    base_lr: float
    """What the cosine stands on: the rate that the last boost, reset or restart gave."""
    lr: float
    """Learning rate of the next epoch."""
    label_smoothing: float
    auxiliary_weight: float
    reward: float = 0.0
    """Change of the validation accuracy in the last epoch, in points, clamped."""
    cycle_epoch: int = 0
    """Position of the next epoch in its cosine cycle, from 0."""
    stagnant: int = 0
    """Epochs in a row without growth."""
    boosted: bool = False
    """Whether there was a boost so far; the first one ends a warm-up."""


def initial_state(d: Dynamics) -> State:
    """Return the state before the first epoch."""
    return State(
        momentum=d.momentum0,
        base_lr=d.lr0,
        lr=lr_at(d, d.lr0, 0),
        label_smoothing=max(d.smoothing_floor, d.smoothing_max * 0.5),
        auxiliary_weight=d.auxiliary_from,
    )


def lr_at(d: Dynamics, base_lr: float, cycle_epoch: int) -> float:
    """Return the learning rate at a position of a cycle: the base under the cosine, never below ``lr_min``."""
    t = min(cycle_epoch, d.period)
    return max(d.lr_min, base_lr * 0.5 * (1.0 + math.cos(math.pi * t / d.period)))


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
    boost = d.boosts and reward > 0 and confidence > d.boost_confidence
    stagnant = 0 if reward > 0 else state.stagnant + 1
    base, position, stagnant = _rate(d, state, d.boost_gain * reward if boost else None, stagnant)
    progress = min(1.0, (epoch + 1) / max(1, d.epochs - 1))
    return State(
        prev_val=val_top1,
        confidence=confidence,
        momentum=_clip(state.momentum + push, d.momentum_floor, cap),
        ema=_clip(0.96 + 0.02 * confidence, 0.90, 0.999),
        base_lr=base,
        lr=lr_at(d, base, position),
        label_smoothing=d.smoothing_floor if late else max(d.smoothing_floor, d.smoothing_max * (1 - confidence)),
        auxiliary_weight=d.auxiliary_from + (d.auxiliary_to - d.auxiliary_from) * progress,
        reward=reward,
        cycle_epoch=position,
        stagnant=stagnant,
        boosted=state.boosted or boost,
    )


def _rate(d: Dynamics, s: State, boost: float | None, stagnant: int) -> tuple[float, int, int]:
    """Return the base, the position in the cycle and the epochs without growth for the next epoch.

    Everything acts on the rate in use, which is what an optimizer's ``lr`` holds (paper, III.C.4): a boost makes
    ``LR (1 + 0.065 r)``, at most the maximum, the new base under the cosine that goes on; a plateau reset and the
    restart at the end of the cycle make ``max(LR, 0.6 maximum)`` the start of a new cycle.
    """
    position = s.cycle_epoch + 1
    over = d.restarts and position >= d.period
    if over or (d.plateau_resets and stagnant >= d.patience):
        return max(s.lr, d.reset_fraction * d.lr_max), 0, 0
    if boost is not None:
        return min(d.lr_max, s.lr * (1.0 + boost)), position, stagnant
    return s.base_lr, position, stagnant


def _clip(value: float, low: float, high: float) -> float:
    return min(high, max(low, value))
