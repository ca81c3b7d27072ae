"""The MobileViT grid against the thesis' table and, part by part, against the document's component counts."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qdeploy.core.errors import InputError
from qdeploy.models.mobilevit import MobileVitConfig, create_mobilevit, folded, patches
from qdeploy.models.operators import (
    ATTENTIONS,
    CONVOLUTIONS,
    FUSIONS,
    ChannelShuffle,
    LowRankAttention,
    Mixing,
    MultiHeadAttention,
    SeparableAttention,
    grouped,
)
from qdeploy.models.registry import GRID, create_model, model_from_record, summarise

PUBLISHED = {  # thesis, table 6.1
    "standard-mha-v1": 1086234,
    "standard-separable-v2": 602234,
    "standard-separable-v1": 833018,
    "grouped-lowrank-v2": 695457,
    "depthwise-separable-v1": 733267,
    "depthwise-lowrank-v2": 632307,
    "grouped-mha-v3": 844833,
    "pointwise-lowrank-v3": 655258,
    "grouped-separable-v3": 591617,
    "pointwise-separable-v3": 525434,
    "depthwise-separable-v3": 528467,
    "pointwise-separable-v2": 499450,
    "grouped-separable-v2": 565633,
    "pointwise-mha-v2": 752666,
}
ALL = {  # rows: convolution; columns: mha, separable, lowrank, each v1, v2, v3
    "standard": (1086234, 855450, 881434, 833018, 602234, 628218, 962842, 732058, 758042),
    "depthwise": (986483, 755699, 781683, 733267, 502483, 528467, 863091, 632307, 658291),
    "grouped": (1049633, 818849, 844833, 796417, 565633, 591617, 926241, 695457, 721441),
    "pointwise": (983450, 752666, 778650, 730234, 499450, 525434, 860058, 629274, 655258),
}
LAYERS = {  # convolution: stem, seven MV2 blocks, head
    "standard": (464, 2912, 3440, 2976, 2976, 4176, 12128, 20256, 26240),
    "depthwise": (113, 2960, 3488, 3048, 3048, 4248, 12272, 20448, 26480),
    "grouped": (167, 3072, 3600, 3312, 3312, 4512, 13376, 22432, 29600),
    "pointwise": (80, 2912, 3440, 2976, 2976, 4176, 12128, 20256, 26240),
}
LOCAL = {
    "standard": (20832, 36992, 57760),
    "depthwise": (2928, 4928, 7440),
    "grouped": (12864, 22784, 35520),
    "pointwise": (2400, 4224, 6560),
}
ATTENTION = {
    "mha": (32832, 41040, 49248),
    "separable": (8320, 12960, 18624),
    "lowrank": (16960, 26480, 38112),
}
FUSION = {"v1": (41568, 73856, 115360), "v3": (4704, 8320, 12960), "v2": (0, 0, 0)}


def size_of(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    assert summarise(f"mobilevit-{name}").params == PUBLISHED[name]


def test_all_counts() -> None:
    columns = list(itertools.product(("mha", "separable", "lowrank"), ("v1", "v2", "v3")))
    expected = {f"mobilevit-{conv}-{a}-{f}": n for conv in ALL for (a, f), n in zip(columns, ALL[conv], strict=True)}
    assert {name: summarise(name).params for name in GRID} == expected


@pytest.mark.parametrize("conv", LAYERS)
def test_layer_counts(conv: str) -> None:
    model = create_mobilevit(conv=conv, attention="mha", fusion="v2")
    blocks = list(model.blocks)
    mv2 = [blocks[i] for i in (0, 1, 2, 3, 4, 6, 8)]
    assert tuple(size_of(m) for m in (model.stem, *mv2, model.head)) == LAYERS[conv]
    assert size_of(model.classify) == 3210
    assert tuple(size_of(blocks[i].local) for i in (5, 7, 9)) == LOCAL[conv]  # type: ignore[arg-type]


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("fusion", FUSION)
def test_block_counts(attention: str, fusion: str) -> None:
    model = create_mobilevit(attention=attention, fusion=fusion)
    for place, i in enumerate((5, 7, 9)):
        block = model.blocks[i]
        layers = list(block.layers)  # type: ignore[arg-type]
        assert len(layers) == (2, 4, 3)[place]
        assert {size_of(layer.attention) for layer in layers} == {ATTENTION[attention][place]}
        assert {size_of(layer) - size_of(layer.attention) for layer in layers} == {(16832, 26160, 37536)[place]}
        assert size_of(block.widen) == (3200, 5280, 7872)[place]  # type: ignore[arg-type]
        assert size_of(block.narrow) == (3168, 5248, 7840)[place]  # type: ignore[arg-type]
        assert size_of(block.fusion) == FUSION[fusion][place]  # type: ignore[arg-type]


def test_groups_are_two_but_for_the_three_colours() -> None:
    model = create_mobilevit(conv="grouped")
    stem = next(m for m in model.stem.modules() if isinstance(m, nn.Conv2d))
    others = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m is not stem and 1 < m.groups < m.in_channels]
    assert stem.groups == 1
    assert {m.groups for m in others} == {2}
    assert len(others) == 7 + 3 + 1


PLACES = [(3, 16, 3), (16, 64, 1), (16, 64, 1), *[(24, 48, 1)] * 3, (48, 96, 1), (64, 128, 1), (80, 320, 1)]
"""Widths and kernel of the grouped convolutions outside the MobileViT blocks."""


@pytest.mark.parametrize(("groups", "taken"), [(1, (1, 1, 1)), (4, (1, 4, 4)), (7, (1, 4, 6)), (16, (1, 16, 12))])
@pytest.mark.parametrize("mixing", ["dense", "shuffle"])
def test_counts_of_other_groups(groups: int, taken: tuple[int, ...], mixing: Mixing) -> None:
    convolutions = [grouped(c_in, 2 * c_out, 3, groups=groups) for c_in, c_out in ((3, 8), (16, 32), (24, 24))]
    assert tuple(next(m.groups for m in c.modules() if isinstance(m, nn.Conv2d)) for c in convolutions) == taken
    name, changes = "mobilevit-grouped-separable-v2", (("groups", str(groups)), ("mixing", mixing))
    expected = summarise("mobilevit-standard-separable-v2").params
    for c_in, c_out, kernel in [*PLACES, *((c, c, 3) for c in (48, 64, 80))]:
        g = max(g for g in range(1, groups + 1) if math.gcd(c_in, c_out) % g == 0)
        expected -= kernel**2 * c_in * c_out
        expected += kernel**2 * c_in * c_in // g + 2 * c_in + c_in * c_out // (g if mixing == "shuffle" else 1)
    assert summarise(name, changes=changes).params == expected


def test_the_table_of_the_docs_has_the_counts() -> None:
    text = (Path(__file__).parents[2] / "docs" / "mobilevit.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([\d,]+) \| ([\d.]+) \| ([\d,]+) \| ([\d.]+) \|$", text, flags=re.M)
    assert [row[0] for row in rows] == ["1", "2", "4", "8", "16"]
    for groups, *cells in rows:
        both = [
            summarise("mobilevit-grouped-separable-v2", changes=(("groups", groups), ("mixing", mixing)))
            for mixing in ("dense", "shuffle")
        ]
        assert cells == [cell for s in both for cell in (f"{s.params:,}", f"{s.macs / 1e6:.1f}")]


@torch.no_grad()
def test_the_shuffle_deals_channels_out_in_turn_and_mixes_the_groups() -> None:
    x = torch.arange(12.0).reshape(1, 12, 1, 1)
    assert ChannelShuffle(3)(x).flatten().tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    torch.manual_seed(0)
    shuffled, straight = grouped(16, 16, 1, groups=4, mixing="shuffle").eval(), grouped(16, 16, 1, groups=4).eval()
    spatial, shuffle, mix = shuffled.children()
    assert [m.groups for m in shuffled.modules() if isinstance(m, nn.Conv2d)] == [4, 4]
    assert isinstance(shuffle, ChannelShuffle)
    without = nn.Sequential(spatial, mix)
    reached = [reach(net) for net in (shuffled, straight, without)]
    assert [int(r.sum()) for r in reached] == [256, 256, 4 * 16]


def reach(network: nn.Module) -> Tensor:
    """Tell which of 16 inputs changes which of 16 outputs."""
    base = network(torch.zeros(1, 16, 1, 1))
    return (network(torch.eye(16)[:, :, None, None]) - base).flatten(1) != 0


@pytest.mark.parametrize("name", GRID)
def test_five_images_of_256_pixels_give_five_times_ten_logits(name: str) -> None:
    with torch.device("meta"):
        assert create_model(name, 10).eval()(torch.empty(5, 3, 256, 256)).shape == (5, 10)


@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_any_size_and_number_of_classes(conv: str) -> None:
    name = f"mobilevit-{conv}-mha-v1"
    with torch.device("meta"):
        assert create_model(name, 7, 224).eval()(torch.empty(1, 3, 224, 224)).shape == (1, 7)
        assert create_model(name, 3, 33).eval()(torch.empty(2, 3, 33, 33)).shape == (2, 3)


@pytest.mark.parametrize("name", GRID)
def test_gradients_reach_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, 4, 64).train()
    logits = model(torch.randn(2, 3, 64, 64))
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert logits.isfinite().all()
    # one token is left in the last block at 64 pixels, and a softmax over one token has no gradient
    mute = {"qkv", "compress"} if "separable" not in name else set()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        last_attention = key.startswith("blocks.9.layers") and key.split(".")[-2] in mute
        assert parameter.grad.abs().sum() > 0 or last_attention, key


@pytest.mark.parametrize("name", ["mobilevit-standard-mha-v1", "mobilevit-depthwise-lowrank-v3"])
def test_gradients_reach_every_parameter_at_the_thesis_size(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, 4, 224).train()
    F.cross_entropy(model(torch.randn(2, 3, 224, 224)), torch.tensor([0, 1])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


def test_patches_by_hand() -> None:
    x = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
    found = patches(x)
    assert found.shape == (2, 4, 6, 3)
    for y, column in itertools.product(range(4), range(6)):
        position, patch = 2 * (y % 2) + column % 2, 3 * (y // 2) + column // 2
        assert torch.equal(found[:, position, patch], x[:, :, y, column])
    assert torch.equal(folded(found, [4, 6]), x)


def attend_by_hand(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention of ``[N, D]`` tensors, head by head."""
    width = q.shape[1] // heads
    parts = []
    for h in range(heads):
        own = slice(h * width, (h + 1) * width)
        weights = (q[:, own] @ k[:, own].T / math.sqrt(width)).softmax(1)
        parts.append(weights @ v[:, own])
    return torch.cat(parts, dim=1)


@torch.no_grad()
def test_multi_head_attention_by_hand() -> None:
    torch.manual_seed(0)
    attention, x = MultiHeadAttention(12), torch.randn(2, 4, 5, 12)
    q, k, v = (attention.qkv.weight[i * 128 : (i + 1) * 128] for i in range(3))
    for b, p in itertools.product(range(2), range(4)):
        t = x[b, p]
        expected = attention.out(attend_by_hand(t @ q.T, t @ k.T, t @ v.T, heads=4))
        assert torch.allclose(attention(x)[b, p], expected, atol=1e-6)


@torch.no_grad()
def test_low_rank_attention_by_hand() -> None:
    torch.manual_seed(0)
    attention, x = LowRankAttention(16), torch.randn(1, 4, 5, 16)
    t = x[0, 2]
    q, k, v = (t @ attention.qkv.weight[i * 16 : (i + 1) * 16].T for i in range(3))
    compress, expand = attention.compress.weight.T, attention.expand.weight.T
    parts = []
    for h in range(4):
        own = slice(4 * h, 4 * h + 4)
        weights = (q[:, own] @ (k[:, own] @ compress).T / 2.0).softmax(1)
        parts.append(weights @ (v[:, own] @ compress) @ expand)
    assert torch.allclose(attention(x)[0, 2], attention.out(torch.cat(parts, dim=1)), atol=1e-6)


@torch.no_grad()
def test_separable_attention_by_hand() -> None:
    torch.manual_seed(0)
    attention, x = SeparableAttention(8), torch.randn(2, 4, 5, 8)
    t = x[1, 3]
    u = t @ attention.project.weight.T + attention.project.bias
    context = sum(u[i] * t[i] for i in range(5)) / 5
    expected = (u * context) @ attention.out.weight.T + attention.out.bias
    assert torch.allclose(attention(x)[1, 3], expected, atol=1e-6)


@torch.no_grad()
def test_fusions() -> None:
    local, globe = torch.randn(2, 2, 6, 4, 4)
    assert torch.equal(FUSIONS["v2"](6)(local, globe), local + globe)
    for name, kernel in (("v1", 3), ("v3", 1)):
        fusion = FUSIONS[name](6).eval()
        conv = next(m for m in fusion.modules() if isinstance(m, nn.Conv2d))
        assert conv.kernel_size == (kernel, kernel)
        both = F.conv2d(torch.cat([globe, local], 1), conv.weight, padding=kernel // 2) / math.sqrt(1 + 1e-5)
        assert torch.allclose(fusion(local, globe), F.silu(both), atol=1e-6)


def test_the_record_of_a_run_builds_the_model_again() -> None:
    config = MobileVitConfig(conv="grouped", attention="lowrank", fusion="v3", num_classes=5, input_size=96)
    model = model_from_record("mobilevit", config.to_dict())
    assert model.config == config


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"conv": "dilated"}, "there is no conv 'dilated'; known: standard, depthwise, grouped, pointwise"),
        ({"attention": "seperable"}, "did you mean 'separable'.*known: mha, separable, lowrank"),
        ({"fusion": "v4"}, "known: v1, v2, v3"),
        ({"input_size": 31}, "input size 31 is too small for the strides; give 32 or more"),
        ({"num_classes": 0}, "at least 1 class, found num_classes=0"),
        ({"conv": "grouped", "groups": 0}, "groups must be between 1 and 80, found 0"),
        ({"conv": "grouped", "mixing": "shuffled"}, "mixing must be one of dense, shuffle, found 'shuffled'"),
        ({"groups": 4}, "groups and mixing are of the grouped convolution, found conv=standard"),
        ({"conv": "depthwise", "mixing": "shuffle"}, "found conv=depthwise"),
    ],
)
def test_bad_configurations(options: dict[str, int], says: str) -> None:
    with pytest.raises(InputError, match=says):
        MobileVitConfig(**options)  # type: ignore[arg-type]


def test_the_record_of_a_run_that_is_older_than_groups_builds_the_model_of_the_table() -> None:
    fields = MobileVitConfig(conv="grouped").to_dict()
    older = {k: v for k, v in fields.items() if k not in ("groups", "mixing")}
    assert MobileVitConfig.from_dict(older) == MobileVitConfig(conv="grouped", groups=2, mixing="dense")


def test_the_registries_are_those_of_the_thesis() -> None:
    assert list(CONVOLUTIONS) == list(ALL)
    assert list(ATTENTIONS) == list(ATTENTION)
    assert sorted(FUSIONS) == ["v1", "v2", "v3"]


def test_strided_points_train_as_the_convolution_that_they_are() -> None:
    torch.manual_seed(0)
    (points, *_), image = CONVOLUTIONS["pointwise"](3, 16, 3, 2).children(), torch.randn(4, 3, 15, 16)
    assert torch.allclose(points.train()(image), points.eval()(image), atol=1e-6)
    assert points.train()(image).shape == (4, 16, 8, 8)
