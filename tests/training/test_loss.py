from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from qdeploy.models.classifier import Paths
from qdeploy.training.loss import hardness_weights, soft_cross_entropy, total_loss
from qdeploy.training.recipes import TrainConfig
from qdeploy.training.schedule import Settings

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-1.0, 3.0, 0.0], [0.0, 0.0, 4.0]])
TARGET = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.3, 0.7], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
SETTINGS = Settings(lr=1e-3, momentum=0.9, ema=0.9, label_smoothing=0.2, auxiliary_weight=0.3, confidence=0.5)


def test_soft_cross_entropy_is_the_formula() -> None:
    smooth = TARGET * 0.8 + 0.2 / 3
    expected = -(smooth * LOGITS.log_softmax(1)).sum(1)
    assert soft_cross_entropy(LOGITS, TARGET, 0.2).item() == pytest.approx(expected.mean().item(), rel=1e-6)
    hard = F.one_hot(torch.tensor([0, 2, 1, 0]), 3).float()
    reference = F.cross_entropy(LOGITS, torch.tensor([0, 2, 1, 0]), label_smoothing=0.1)
    assert soft_cross_entropy(LOGITS, hard, 0.1).item() == pytest.approx(reference.item(), rel=1e-6)


def test_hard_images_weigh_more_and_the_mean_weight_is_one() -> None:
    weights = hardness_weights(LOGITS, TARGET)
    assert weights.mean().item() == pytest.approx(1.0)
    assert weights.argmax() == 3  # sure and wrong
    assert weights.argmin() == 2  # sure and right
    p = (LOGITS.softmax(1) * TARGET).sum(1)
    assert torch.allclose(weights, (2 - p) / (2 - p).mean())
    losses = -(TARGET * LOGITS.log_softmax(1)).sum(1)
    expected = (losses * weights).mean().item()
    assert soft_cross_entropy(LOGITS, TARGET, hardness=True).item() == pytest.approx(expected, rel=1e-6)


def test_hardness_weights_carry_no_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    soft_cross_entropy(logits, TARGET, hardness=True).backward()
    assert logits.grad is not None
    by_hand = (LOGITS.softmax(1) - TARGET) * hardness_weights(LOGITS, TARGET)[:, None] / 4
    assert torch.allclose(logits.grad, by_hand, atol=1e-6)


def test_the_paths_of_the_sota_head_add_their_losses() -> None:
    paths = Paths(LOGITS, LOGITS * 0.5, LOGITS * 2)
    base = soft_cross_entropy(LOGITS, TARGET, 0.2)
    auxiliary, transformer = soft_cross_entropy(LOGITS * 2, TARGET), soft_cross_entropy(LOGITS * 0.5, TARGET)
    config = TrainConfig()
    assert total_loss(paths, TARGET, config, SETTINGS) == pytest.approx((base + 0.3 * auxiliary).item())
    deep = TrainConfig(deep_supervision=0.5)
    expected = base + 0.3 * auxiliary + 0.5 * transformer
    assert total_loss(paths, TARGET, deep, SETTINGS) == pytest.approx(expected.item())
    assert total_loss(Paths(LOGITS, None, None), TARGET, config, SETTINGS) == pytest.approx(base.item())
    hard = TrainConfig(hardness=True)
    weighed = soft_cross_entropy(LOGITS, TARGET, 0.2, hardness=True)
    assert total_loss(Paths(LOGITS, None, None), TARGET, hard, SETTINGS) == pytest.approx(weighed.item())
