"""The controller against the paper's epoch tables (GAP head, 70 epochs); docs/training.md has the rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qdeploy.training.dynamics import Dynamics, State, initial_state, lr_at, step

D = Dynamics()
MAX_LR = 6e-4

#        epoch, learning rate printed, base that the envelope stands on
RATES = [
    (1, 0.0005, 5e-4),
    (10, 0.000567, MAX_LR),
    (20, 0.000415, 5.37e-4),
    (26, 0.000338, 5.37e-4),
    (41, 0.000134, 5.37e-4),
    (54, 0.0001, MAX_LR),
    (60, 0.0001, MAX_LR),
    (65, 0.000356, MAX_LR),
    (68, 0.00058, MAX_LR),
    (69, 0.000574, MAX_LR),
]


@pytest.mark.parametrize(("epoch", "printed", "base"), RATES)
def test_the_learning_rate_column(epoch: int, printed: float, base: float) -> None:
    assert lr_at(D, base, epoch - 1) == pytest.approx(printed, abs=6e-7)


#        epoch, reward, confidence, momentum before, momentum, ema
ROWS = [
    (1, 2.355, 0.7645, 0.90, 0.9471, 0.9753),  # the paper prints 0.9573: two digits swapped
    (10, 2.0045, 0.7315, 0.98, 0.98, 0.9746),
    (20, 0.825, 0.6017, 0.98, 0.98, 0.9720),
    (26, 0.715, 0.5884, 0.98, 0.98, 0.9718),
    (41, 0.740, 0.5915, 0.98, 0.98, 0.9718),
    (54, 0.170, 0.5212, 0.98, 0.9834, 0.9704),
    (65, 9.0, 0.9241, 0.99, 0.995, 0.9785),  # the reward is clamped at 5
    (68, 0.480, 0.5597, 0.99, 0.995, 0.9712),
    (69, 52.86 - 53.42, 0.4305, 0.995, 0.9838, 0.9686),
]


@pytest.mark.parametrize(("epoch", "reward", "confidence", "before", "momentum", "ema"), ROWS)
def test_confidence_momentum_and_ema_columns(
    epoch: int, reward: float, confidence: float, before: float, momentum: float, ema: float
) -> None:
    state = replace(initial_state(D), prev_val=50.0, best_val=60.0, momentum=before)
    after = step(D, state, 50.0 + reward, epoch - 1)
    assert after.confidence == pytest.approx(confidence, abs=1e-4)
    assert after.momentum == pytest.approx(momentum, abs=1e-4)
    assert after.ema == pytest.approx(ema, abs=1e-4)


def run(values: list[float], first_epoch: int = 0, state: State | None = None) -> State:
    state = state or initial_state(D)
    for i, value in enumerate(values):
        state = step(D, state, value, first_epoch + i)
    return state


def test_the_first_epoch_starts_from_ninety_percent_momentum() -> None:
    assert run([2.355]).momentum == pytest.approx(0.9471, abs=1e-4)


def test_momentum_telescopes_from_epoch_54_to_60() -> None:
    at_54 = replace(initial_state(D), prev_val=54.76, best_val=54.76, momentum=0.98339)
    after = run([54.5, 54.6, 54.3, 54.2, 53.97, 54.05], first_epoch=54, state=at_54)
    assert after.momentum == pytest.approx(0.9691, abs=2e-4)
    assert after.confidence == pytest.approx(0.51, abs=1e-4)


def test_a_plateau_lowers_momentum_only_if_nothing_moves() -> None:
    still = replace(initial_state(D), prev_val=40.0, best_val=40.0, momentum=0.95)
    assert step(D, still, 40.0, 5).momentum == pytest.approx(0.94)


def test_boosts_need_confidence_and_stop_at_the_cap() -> None:
    calm = replace(initial_state(D), prev_val=40.0, best_val=40.0)
    assert step(D, calm, 41.6, 5).base_lr == 5e-4
    assert step(D, calm, 42.0, 5).base_lr == pytest.approx(5e-4 * (1 + 0.065 * 2))
    assert step(D, calm, 45.0, 5).base_lr == MAX_LR


def test_four_epochs_without_progress_reset_a_low_base() -> None:
    low = replace(initial_state(D), base_lr=2e-4, prev_val=50.0, best_val=50.0)
    assert run([49.9, 49.9, 49.9], 10, low).base_lr == 2e-4
    assert run([49.9, 49.9, 49.9, 49.9], 10, low).base_lr == pytest.approx(0.6 * MAX_LR)


def test_the_warm_restart_comes_after_epoch_60_with_a_five_epoch_ramp() -> None:
    after = step(D, replace(initial_state(D), prev_val=54.0, best_val=55.0, base_lr=3e-4), 54.05, 59)
    assert after.base_lr == MAX_LR
    ramp = [lr_at(D, MAX_LR, e) / (lr_at(replace(D, ramp=1), MAX_LR, e)) for e in range(62, 67)]
    assert ramp == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0], abs=1e-6)


def test_label_smoothing_and_auxiliary_weight() -> None:
    assert run([1.0]).label_smoothing == pytest.approx(0.2 * (1 - 0.6225), abs=1e-4)
    assert run([5.0]).label_smoothing == 0.05
    late = step(D, replace(initial_state(D), prev_val=60.0), 50.0, 53)
    assert late.label_smoothing == 0.05
    assert run([1.0]).auxiliary_weight == pytest.approx(0.4 - 0.2 / 69)
    assert step(D, initial_state(D), 1.0, 69).auxiliary_weight == pytest.approx(0.2)


def test_scaling_is_exact_at_seventy_epochs_and_proportional_elsewhere() -> None:
    assert Dynamics.scaled(70, 5e-4) == D
    half = Dynamics.scaled(35, 1e-3)
    assert half.period == 30
    assert [half.lr_max, half.lr_min] == pytest.approx([1.2e-3, 2e-4])
    assert Dynamics.scaled(1, 1e-3).period == 1


def test_phases_reloads_and_swa_scale_with_the_run() -> None:
    assert (D.reload_epochs, D.swa_start) == ((30, 45, 60), 60)
    assert [D.phase(e) for e in (0, 34, 35, 69)] == [1, 1, 2, 2]
    half = Dynamics.scaled(35, 5e-4)
    assert half.reload_epochs == (15, 22, 30)
    assert half.swa_start == 30
    assert [half.phase(e) for e in (17, 18)] == [1, 2]
    assert [Dynamics.scaled(4, 5e-4).phase(e) for e in range(4)] == [1, 1, 2, 2]


def test_boosts_resets_and_restarts_can_be_switched_off() -> None:
    calm = replace(initial_state(D), prev_val=40.0, best_val=40.0)
    assert step(replace(D, boosts=False), calm, 45.0, 5).base_lr == 5e-4
    low = replace(initial_state(D), base_lr=2e-4, prev_val=50.0, best_val=50.0)
    no_resets = replace(D, plateau_resets=False)
    state = low
    for epoch in range(10, 20):
        state = step(no_resets, state, 49.9, epoch)
    assert state.base_lr == 2e-4
    no_restarts = replace(D, restarts=False)
    assert step(no_restarts, low, 49.9, 59).base_lr == 2e-4
    assert [lr_at(no_restarts, 6e-4, e) for e in (59, 60, 65, 69)] == [1e-4] * 4
    assert lr_at(D, 6e-4, 69) > 5e-4
