from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qdeploy.models.layers import FoldableNormConv, RunningRecentre
from qdeploy.models.registry import create_model
from qdeploy.training.averaging import ExponentialAverage, StochasticWeightAverage, refresh_statistics


def test_the_exponential_average_follows_weights_and_statistics() -> None:
    linear = nn.Linear(3, 3)
    model = nn.Sequential(linear, nn.BatchNorm1d(3))
    average = ExponentialAverage(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        linear.weight += 1.0
    model(torch.randn(8, 3))
    average.update(model, 0.75)
    for key, new in model.state_dict().items():
        expected = 0.75 * before[key] + 0.25 * new if new.is_floating_point() else new
        assert torch.allclose(average.twin.state_dict()[key], expected), key
    average.update(model, 0.0)
    assert torch.equal(average.twin.state_dict()["0.weight"], linear.weight)


def test_swa_is_the_equal_average() -> None:
    model, swa = nn.Linear(2, 2), StochasticWeightAverage()
    weights = []
    for value in (1.0, 2.0, 6.0):
        with torch.no_grad():
            model.weight.fill_(value)
        swa.update(model)
        weights.append(value)
    assert swa.count == 3
    assert swa.weights["weight"].unique().tolist() == pytest.approx([3.0])
    assert model.weight.unique().item() == 6.0


def test_statistics_are_the_equal_average_over_the_batches_with_dropout_off() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1))
    batches = [torch.randn(16, 3, 4, 4) * (i + 1) + i for i in range(5)]
    refresh_statistics(model, batches)
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert torch.allclose(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0), atol=1e-5)
    variances = torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0)
    assert torch.allclose(norm.running_var, variances, rtol=1e-4)
    assert norm.momentum == 0.1
    assert all(m.training for m in model.modules())


def test_statistics_of_our_own_norms_are_refreshed_too() -> None:
    torch.manual_seed(0)
    model = create_model("nano-ar", 4)
    stale = copy.deepcopy(model.state_dict())
    refresh_statistics(model, [torch.randn(8, 3, 64, 64) for _ in range(3)])
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, stale[k])}
    ours = {
        f"{name}.running_mean" for name, m in model.named_modules() if isinstance(m, FoldableNormConv | RunningRecentre)
    }
    assert ours
    assert ours <= changed
    assert all("running" in k or "num_batches" in k for k in changed)
    before = copy.deepcopy(model.state_dict())
    model.eval()
    refresh_statistics(model, [torch.randn(8, 3, 64, 64)])
    assert not model.training
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())
