from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qdeploy.core.errors import InputError
from qdeploy.models.heads import GapHead, HybridHead, SotaHead
from qdeploy.models.layers import DropPath, RunningRecentre, TokenExcite
from qdeploy.models.qonstraint import FusionBlockV2, Qonstraint, QonstraintConfig, QonvViTBlock, build_stem
from qdeploy.models.registry import QONSTRAINTS, create_model, summarise

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


@pytest.mark.parametrize(("name", "head"), [("nano", "gap"), ("nano-ar", "gap+sota"), ("qonstraint-5.5", "sota")])
def test_gradients_reach_every_parameter(name: str, head: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, 10, changes=(("head", head),)).train()
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
    rates = [m.base_rate for m in model.get_submodule("backbone").modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.1 * i / 7 for i in range(8)])
    head = [m.base_rate for m in model.get_submodule("head").modules() if isinstance(m, DropPath)]
    assert head == [0.1] * 3  # feed-forward, token mixer and attention


@pytest.mark.parametrize(("clamps", "bound"), [("once", 12.0), ("throughout", 6.0)])
def test_an_open_gate_does_not_leave_the_bounds_where_clamps_are_throughout(clamps: str, bound: float) -> None:
    block = QonvViTBlock(16, replace(NANO, clamps=clamps), 0.0).train()  # type: ignore[arg-type]
    torch.nn.init.constant_(block.excite.fc2.bias, 50.0)  # type: ignore[arg-type]
    assert float(block(1000 * torch.randn(2, 16, 8, 8)).detach().abs().max()) == pytest.approx(bound)


@pytest.mark.parametrize("branch", ["swiglu", "mixer", "attention"])
def test_the_head_drops_whole_samples_of_its_branches(branch: str) -> None:
    torch.manual_seed(0)
    head = SotaHead(16, 4, num_tokens=4, dropout=0.0, norm="layernorm", drop_path=0.5).train()
    part = head.get_submodule(branch)
    x = torch.randn(64, 1, 16)
    out = part(x, torch.randn(64, 4, 16)) if branch == "attention" else part(x)
    same = (out == x).flatten(1).all(1)
    assert 16 < same.sum() < 48


def test_the_head_clamps_each_of_its_stages() -> None:
    head = SotaHead(16, 4, num_tokens=4, norm="layernorm", clamp_stages=True).eval()
    torch.nn.init.normal_(head.attention.out.weight, std=1000.0)
    seen: list[torch.Tensor] = []
    for module in (head.mixer, head.classify):  # what comes after the first stage and after the last
        module.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    head(1000 * torch.randn(2, 16, 2, 2))
    assert [float(x.detach().abs().max()) for x in seen] == [6.0, 6.0]


@pytest.mark.parametrize(("dim", "heads"), [(64, 4), (128, 8), (512, 8)])
def test_fusion_has_eight_heads_of_at_least_sixteen(dim: int, heads: int) -> None:
    assert FusionBlockV2(8, 8, dim, 0.0, "gelu").num_heads == heads


def test_the_sota_head_weighs_its_paths_by_confidence() -> None:
    head = SotaHead(16, 4, num_tokens=4)
    t, c, a = torch.tensor([[5.0, 0, 0, 0]]), torch.tensor([[0.0, 1, 0, 0]]), torch.tensor([[0.0, 0, 1, 0]])
    conf = t.softmax(1).max()
    expected = 0.4 * conf * t + 0.4 * (1 - conf) * c + 0.2 * a
    assert torch.allclose(head.combine(t, c, a), expected)


@pytest.mark.parametrize(("labels", "share"), [(None, 0.5), (torch.tensor([3, 1]), 0.25)])
def test_the_hybrid_head_mixes_both(labels: torch.Tensor | None, share: float) -> None:
    torch.manual_seed(0)
    gap, sota = GapHead(16, 4), SotaHead(16, 4, num_tokens=4)
    head = HybridHead(gap, sota).eval()
    assert head.share.item() == 0.5
    torch.nn.init.constant_(head.share, share)
    features = torch.randn(2, 16, 2, 2)
    transformer, conv, auxiliary = sota.paths(features)
    expected = (1 - share) * gap(features) + share * SotaHead.combine(transformer, conv, auxiliary, labels)
    paths = head.forward_paths(features, labels)
    assert torch.allclose(paths.logits, expected, atol=1e-6)
    if labels is None:
        assert torch.equal(paths.logits, head(features))
    assert paths.transformer is not None
    assert paths.auxiliary is not None
    assert torch.equal(paths.transformer, transformer)
    assert torch.equal(paths.auxiliary, auxiliary)


def test_the_hybrid_head_has_the_parameters_of_both_and_one_more() -> None:
    gap, sota, both = (
        sum(p.numel() for p in replace(NANO, head=head).build().head.parameters())
        for head in ("gap", "sota", "gap+sota")
    )
    assert (gap, both) == (650, gap + sota + 1)


def test_the_table_of_the_docs_has_the_counts_of_the_heads() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    rows = re.findall(r"^\| `([a-z+]+)` \| ([\d,]+) \| ([\d,]+) \|$", text, flags=re.M)
    assert [row[0] for row in rows] == ["gap", "sota", "gap+sota"]
    for head, *cells in rows:
        models = (("nano", 10), ("qonstraint-5.9-gap", 200))
        assert cells == [f"{summarise(name, k, changes=(('head', head),)).params:,}" for name, k in models]


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
