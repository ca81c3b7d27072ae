"""The published networks against their papers and against what other implementations of them count."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qdeploy.core.errors import InputError
from qdeploy.models.folding import deploy
from qdeploy.models.published import PaddedShortcut, PublishedConfig
from qdeploy.models.registry import create_model, model_from_record, summarise

COUNTS = {  # exact, at 10 classes; millions as the Qonstraint paper's table prints them
    "resnet-20": (269_722, 0.27, 20),
    "densenet-bc-100-12": (769_162, 0.8, 100),
    "pyramidnet-110": (1_772_706, 1.7, 110),
    "wideresnet-28-10": (36_479_194, 36.5, 28),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_the_published_ones(name: str) -> None:
    exact, millions, _ = COUNTS[name]
    summary = summarise(name)
    assert (summary.params, summary.family, summary.num_classes) == (exact, "published", 10)
    assert summary.params / 1e6 == pytest.approx(millions, rel=0.05)


@pytest.mark.parametrize("name", COUNTS)
def test_layers_are_as_many_as_the_name_says(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, 10)
    counted = nn.Conv2d if name.startswith("wide") else nn.Conv2d | nn.Linear  # WideResNet counts its shortcuts instead
    assert sum(isinstance(m, counted) for m in model.modules()) == COUNTS[name][2]


@pytest.mark.parametrize("name", ["resnet-20", "densenet-bc-100-12", "pyramidnet-110"])
def test_a_step_moves_every_parameter_and_the_record_builds_it_again(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, 5, 32).train()
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    again = model_from_record(model.config.family, model.config.to_dict())
    again.load_state_dict(model.state_dict())
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = again.eval()((pixels / 255 - 0.5).permute(0, 3, 1, 2) / 0.25)
        assert torch.allclose(deploy(model, [0.5] * 3, [0.25] * 3)(pixels)[0], expected, atol=1e-4)


def test_a_shortcut_without_parameters_subsamples_or_pools_and_fills_with_zeros() -> None:
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    for pooled, first in ((False, 0.0), (True, 2.5)):
        y = PaddedShortcut(3, 2, pooled)(x)
        assert y.shape == (1, 5, 2, 2)
        assert y[0, 0, 0, 0] == first
        assert not y[:, 2:].any()
    assert torch.equal(PaddedShortcut(0, 1, pooled=False)(x), x)


def test_wrong_configurations_are_refused() -> None:
    with pytest.raises(InputError, match="no published network 'resnet-21'"):
        PublishedConfig(name="resnet-21")
    with pytest.raises(InputError, match="multiple of 4"):
        PublishedConfig(name="resnet-20", input_size=30)
