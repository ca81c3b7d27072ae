from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from qdeploy.models.heads import SotaHead
from qdeploy.training.recipes import TrainConfig, config_from_recipe
from qdeploy.training.schedule import ConfidenceSchedule, CosineSchedule


def test_cosine_warms_up_and_ends_at_zero() -> None:
    schedule = CosineSchedule(TrainConfig(epochs=10, lr=1e-3), steps_per_epoch=100)
    rates = [schedule.settings(i).lr for i in range(1000)]
    assert rates[0] == pytest.approx(1e-3 / 30)
    assert max(rates) == pytest.approx(1e-3)
    assert rates.index(max(rates)) in (29, 30)
    assert rates[30 + 485] == pytest.approx(5e-4, rel=1e-3)
    assert rates[-1] < 1e-8
    assert schedule.settings(0).ema == pytest.approx(0.1)
    assert schedule.settings(999).ema == pytest.approx(1000 / 1009)


def test_confidence_warms_up_in_its_first_epoch_only() -> None:
    config = config_from_recipe("qonstraint-5.9")
    assert config.lr == 5e-4
    schedule = ConfidenceSchedule(config, steps_per_epoch=10)
    assert schedule.settings(0).lr == pytest.approx(5e-4 * 0.19)
    assert schedule.settings(9).lr == pytest.approx(5e-4)
    schedule.finish_epoch(0, 2.355)
    assert schedule.settings(10).lr == pytest.approx(schedule.current.lr)
    assert schedule.settings(10).momentum == pytest.approx(0.9471)


def test_a_boost_ends_a_longer_warm_up() -> None:
    config = config_from_recipe("qonstraint-5.9", warmup_epochs=5)
    slow, boosted = (ConfidenceSchedule(config, steps_per_epoch=10) for _ in range(2))
    assert slow.settings(9).lr == pytest.approx(5e-4 * 0.28)
    slow.finish_epoch(0, 1.0)
    assert slow.settings(10).lr == pytest.approx(slow.current.lr * (0.1 + 0.9 * 11 / 50))
    boosted.finish_epoch(0, 2.355)
    assert boosted.settings(10).lr == boosted.current.lr
    boosted.finish_epoch(1, 1.0)  # no boost, but the warm-up stays over
    assert boosted.settings(20).lr == boosted.current.lr


@pytest.mark.parametrize(
    ("part", "field", "constant"),
    [
        ("dynamic_momentum", "momentum", 0.92),
        ("dynamic_ema", "ema", 0.9),
        ("dynamic_smoothing", "label_smoothing", 0.07),
        ("auxiliary", "auxiliary_weight", 0.0),
    ],
)
def test_a_part_that_is_switched_off_stays_constant(part: str, field: str, constant: float) -> None:
    def values(**changes: Any) -> list[float]:
        fixed = {"ema_decay": 0.9, "label_smoothing": 0.07, **changes}
        schedule = ConfidenceSchedule(config_from_recipe("qonstraint-5.9", **fixed), steps_per_epoch=1000)
        found = []
        for epoch, accuracy in enumerate((2.0, 3.5, 3.6)):
            schedule.finish_epoch(epoch, accuracy)
            found.append(getattr(schedule.settings(1000 * (epoch + 1)), field))
        return found

    assert values(**{part: False}) == [constant] * 3
    assert len(set(values())) == 3


def test_the_first_epoch_has_the_momentum_the_optimizer_is_built_with() -> None:
    schedule = ConfidenceSchedule(config_from_recipe("qonstraint-5.9"), steps_per_epoch=3)
    assert [schedule.settings(step).momentum for step in range(3)] == [0.92] * 3
    schedule.finish_epoch(0, 2.355)
    assert schedule.settings(3).momentum == pytest.approx(0.9471)


def test_a_cosine_ends_at_its_lowest_rate() -> None:
    config = config_from_recipe("small", epochs=10, lr=1e-3, min_lr=1e-6, warmup_share=0.0)
    schedule = CosineSchedule(config, steps_per_epoch=10)
    rates = [schedule.settings(step).lr for step in range(101)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[100] == pytest.approx(1e-6)
    assert rates[50] == pytest.approx(5e-4, rel=0.02)


def test_the_controller_s_state_survives_json() -> None:
    schedule = ConfidenceSchedule(config_from_recipe("qonstraint-5.9"), steps_per_epoch=3)
    for epoch, accuracy in enumerate((10.0, 12.3, 11.1)):
        schedule.finish_epoch(epoch, accuracy)
    other = ConfidenceSchedule(config_from_recipe("qonstraint-5.9"), steps_per_epoch=3)
    other.restore(json.loads(json.dumps(schedule.state())))
    assert other.settings(9) == schedule.settings(9)
    assert other.settings(9) != ConfidenceSchedule(config_from_recipe("qonstraint-5.9"), 3).settings(9)


def test_the_label_s_confidence_weighs_the_paths_only_when_asked() -> None:
    head = SotaHead(16, 3, num_tokens=4)
    t, c, a = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]]), torch.zeros(1, 3)
    conf = t.softmax(1)[0, 2]
    expected = 0.4 * conf * t + 0.4 * (1 - conf) * c
    assert torch.allclose(head.combine(t, c, a, torch.tensor([2])), expected)
    assert not torch.allclose(head.combine(t, c, a), expected)
