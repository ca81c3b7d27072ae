from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qdeploy.core.errors import InputError
from qdeploy.models.heads import SotaHead
from qdeploy.models.layers import DropPath, RunningRecentre, TokenExcite
from qdeploy.models.qonstraint import FusionBlockV2, Qonstraint, QonstraintConfig, QonvViTBlock, build_stem
from qdeploy.models.registry import QONSTRAINTS, create_model

NANO = replace(QONSTRAINTS["nano"], num_classes=10)


@pytest.mark.parametrize(("stem", "side"), [("soft", 32), ("aggressive", 16)])
def test_stem_shapes(stem: str, side: int) -> None:
    config = replace(QONSTRAINTS["qonstraint-5.9-gap"], num_classes=200, stem=stem)  # type: ignore[arg-type]
    blocks = build_stem(config)
    x = torch.zeros(1, 3, 64, 64)
    widths = []
    for block in blocks:
        x = block(x)
        widths.append(x.shape[1])
    assert widths == [32, 64, 128]
    assert x.shape[2:] == (side, side)


@pytest.mark.parametrize("name", ["nano", "nano-ar", "qonstraint-5.5"])
def test_gradients_reach_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, 10).train()
    for module in model.modules():
        if isinstance(module, TokenExcite):  # zero at the start by design: it would block fc1's gradient
            torch.nn.init.normal_(module.fc2.weight, std=0.1)
    paths = model.forward_paths(torch.randn(4, 3, 64, 64))
    loss = sum((p.square().sum() for p in paths if p is not None), start=torch.zeros(()))
    loss.backward()
    # a bias before a softmax over keys shifts all scores alike: its gradient is zero in theory
    silent = [n for n, p in model.named_parameters() if (p.grad is None or p.grad.abs().max() == 0)]
    assert [n for n in silent if not n.endswith("key.bias")] == []


def test_the_gate_starts_as_identity_and_is_one_number_per_position() -> None:
    model = create_model("nano", 10)
    gate = next(m for m in model.modules() if isinstance(m, TokenExcite))
    x = torch.randn(2, gate.fc1.in_channels, 8, 8)
    assert torch.equal(gate(x), x)
    torch.nn.init.normal_(gate.fc2.weight)
    ratio = gate(x) / x
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4)


@pytest.mark.parametrize("recentre", ["sample", "running"])
def test_the_stream_is_clamped(recentre: str) -> None:
    block = QonvViTBlock(16, replace(NANO, recentre=recentre), 0.0).train()  # type: ignore[arg-type]
    torch.nn.init.zeros_(block.excite.fc2.weight)
    torch.nn.init.zeros_(block.excite.fc2.bias)  # type: ignore[arg-type]
    out = block(1000 * torch.randn(2, 16, 8, 8)).detach()
    if recentre == "running":  # re-centred before the clamp, so that it can be folded
        assert out.abs().max() == 6.0
    else:
        assert out.mean((1, 2, 3)).abs().max() < 1e-4
        assert (out.amax((1, 2, 3)) - out.amin((1, 2, 3))).max() == pytest.approx(12.0, abs=1e-4)


def test_running_recentre_centres_each_channel_and_learns_the_mean() -> None:
    layer = RunningRecentre(3, momentum=1.0).train()
    x = torch.randn(8, 3, 4, 4) + torch.tensor([1.0, 2.0, 3.0])[None, :, None, None]
    assert layer(x).mean((0, 2, 3)).abs().max() < 1e-6
    assert torch.allclose(layer.eval()(x), layer.train()(x), atol=1e-6)


def test_drop_path_follows_the_confidence_and_is_bounded() -> None:
    path = DropPath(0.1)
    path.set_confidence(0.9)
    assert path.rate == pytest.approx(0.1 * 1.4)
    strong = DropPath(0.29)
    strong.set_confidence(1.0)
    assert strong.rate == 0.3
    torch.manual_seed(0)
    out = strong.train()(torch.ones(4000, 2, 2, 2))
    assert torch.equal(out, out[:, :1, :1, :1].expand_as(out))  # whole samples
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert float(out.mean()) == pytest.approx(1.0, abs=0.05)
    assert torch.equal(strong.eval()(torch.ones(4, 1)), torch.ones(4, 1))


def test_rates_rise_linearly_to_the_last_block() -> None:
    model = create_model("qonstraint-5.5", 10)
    rates = [m.base_rate for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.1 * i / 7 for i in range(8)])


@pytest.mark.parametrize(("dim", "heads"), [(64, 4), (128, 8), (512, 8)])
def test_fusion_has_eight_heads_of_at_least_sixteen(dim: int, heads: int) -> None:
    assert FusionBlockV2(8, 8, dim, 0.0, "gelu").num_heads == heads


def test_the_sota_head_weighs_its_paths_by_confidence() -> None:
    head = SotaHead(16, 4, num_tokens=4)
    t, c, a = torch.tensor([[5.0, 0, 0, 0]]), torch.tensor([[0.0, 1, 0, 0]]), torch.tensor([[0.0, 0, 1, 0]])
    conf = t.softmax(1).max()
    expected = 0.4 * conf * t + 0.4 * (1 - conf) * c + 0.2 * a
    assert torch.allclose(head.combine(t, c, a), expected)


def test_any_number_of_classes_and_size() -> None:
    model = Qonstraint(replace(NANO, num_classes=3, input_size=96)).eval()
    assert model(torch.zeros(2, 3, 96, 96)).shape == (2, 3)
    with pytest.raises(InputError, match="multiple of 16"):
        replace(NANO, input_size=50)
    with pytest.raises(InputError, match="multiple of 32"):
        replace(NANO, input_size=48, stem="aggressive")
    with pytest.raises(InputError, match="norm must be one of"):
        replace(NANO, norm="groupnorm")  # type: ignore[arg-type]


def test_configuration_survives_json() -> None:
    assert QonstraintConfig.from_dict(NANO.to_dict()) == NANO
