from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from qdeploy.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from qdeploy.models.layers import DropPath
from qdeploy.models.registry import create_model
from qdeploy.training.augment import normalise
from qdeploy.training.device import choose_precision
from qdeploy.training.learner import Learner
from qdeploy.training.recipes import TrainConfig, config_from_recipe
from qdeploy.training.schedule import ConfidenceSchedule, CosineSchedule, Settings


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
    config = config_from_recipe("confidence", epochs=70)
    assert config.lr == 5e-4
    schedule = ConfidenceSchedule(config, steps_per_epoch=10)
    assert schedule.settings(0).lr == pytest.approx(5e-5)
    assert schedule.settings(5).lr == pytest.approx(5e-4 * 0.55)
    schedule.finish_epoch(0, 2.355)
    assert schedule.settings(10).lr == pytest.approx(schedule.state.lr)
    assert schedule.settings(10).momentum == pytest.approx(0.9471)
    assert schedule.constants.patience == 4
    assert ConfidenceSchedule(config_from_recipe("confidence", epochs=35), 10).constants.patience == 2


SETTINGS = Settings(lr=1e-2, momentum=0.8, ema=0.75, label_smoothing=0.3, auxiliary_weight=0.5, confidence=0.9)


@pytest.mark.parametrize("name", ["nano-ar", "qonstraint-5.5"])
def test_one_step_is_the_one_written_by_hand(name: str) -> None:
    torch.manual_seed(0)
    config = TrainConfig(
        model=name, shift=0, flip=False, amp="off", clip_norm=0.1, deep_supervision=0.25, weight_decay=0.0
    )
    model = create_model(name, 4)
    for module in model.modules():  # no random choice in the step
        if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
            module.p = 0.0
        if isinstance(module, DropPath):
            module.base_rate = 0.0
    by_hand, before = copy.deepcopy(model), {k: v.clone() for k, v in model.state_dict().items()}
    learner = Learner(model, config, choose_precision("cpu", "off"), Preprocessing())
    pixels = torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    loss, _ = learner._step(pixels, labels, SETTINGS)

    by_hand.train()
    by_hand.set_confidence(0.9)
    paths = by_hand.forward_paths(normalise(pixels, torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)))
    soft = F.one_hot(labels, 4) * 0.7 + 0.3 / 4
    expected = -(soft * paths.logits.log_softmax(1)).sum(1).mean()
    if paths.auxiliary is not None and paths.transformer is not None:
        expected = expected + 0.5 * F.cross_entropy(paths.auxiliary, labels)
        expected = expected + 0.25 * F.cross_entropy(paths.transformer, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)

    expected.backward()
    norm = torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 0.1)
    assert norm > 0.1  # so that the clipping is part of what is tested
    reference = torch.optim.AdamW(by_hand.parameters(), lr=1e-2, betas=(0.8, 0.999), weight_decay=0.0)
    reference.step()
    # Adam's first step is the sign of the gradient: where it is rounding noise, the sign may differ
    steady = {n for n, p in by_hand.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-4}
    new, expected_state = model.state_dict(), by_hand.state_dict()
    for key in steady:
        assert torch.allclose(new[key], expected_state[key], atol=2e-3), key
    average = learner.average.state_dict()
    for key in steady:
        assert torch.allclose(average[key], 0.75 * before[key] + 0.25 * new[key], atol=1e-6), key


def test_the_confidence_reaches_every_drop_path() -> None:
    model = create_model("nano-ar", 4)
    learner = Learner(model, TrainConfig(model="nano-ar"), choose_precision("cpu", "off"), Preprocessing())
    learner._step(torch.zeros(2, 64, 64, 3, dtype=torch.uint8), torch.tensor([0, 1]), SETTINGS)
    paths = [m for m in model.modules() if isinstance(m, DropPath)]
    assert [p.rate for p in paths] == pytest.approx([p.base_rate * 1.4 for p in paths])
    assert max(p.rate for p in paths) > 0


def test_the_label_s_confidence_weighs_the_paths_only_when_asked() -> None:
    head = create_model("qonstraint-5.5", 3).head
    t, c, a = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]]), torch.zeros(1, 3)
    conf = t.softmax(1)[0, 2]
    expected = 0.4 * conf * t + 0.4 * (1 - conf) * c
    assert torch.allclose(head.combine(t, c, a, torch.tensor([2])), expected)  # type: ignore[operator]
    assert not torch.allclose(head.combine(t, c, a), expected)  # type: ignore[operator]
