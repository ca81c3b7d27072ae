"""Block, fusion and SOTA head against straight-line forms written from the paper's description, weights copied."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qdeploy.models.heads import SotaHead
from qdeploy.models.layers import initialise
from qdeploy.models.qonstraint import FusionBlockV2, QonstraintConfig, QonvViTBlock
from qdeploy.models.registry import QONSTRAINTS


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Large random weights, so that clamps, gates and scales all matter."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.5 if parameter.dim() > 1 else 1.0))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape))
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape) + 0.5)
    return module.eval()


def norm_then_conv(p: dict[str, Tensor], prefix: str, x: Tensor, norm: str, padding: int) -> Tensor:
    if norm == "foldable":
        scale = p[f"{prefix}.weight"] / (p[f"{prefix}.running_var"] + 1e-5).sqrt()
        shift = p[f"{prefix}.bias"] - p[f"{prefix}.running_mean"] * scale
        y = x * scale[:, None, None] + shift[:, None, None]
        if padding:  # the border is the image of zero
            framed = shift[None, :, None, None].expand(len(x), -1, x.shape[2] + 2, x.shape[3] + 2).clone()
            framed[:, :, 1:-1, 1:-1] = y
            y = framed
        return F.conv2d(y, p[f"{prefix}.conv.weight"], p[f"{prefix}.conv.bias"])
    weight, bias = p[f"{prefix}.0.weight"], p[f"{prefix}.0.bias"]
    if norm == "batchnorm":
        y = F.batch_norm(x, p[f"{prefix}.0.running_mean"], p[f"{prefix}.0.running_var"], weight, bias)
    else:
        mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
        y = (x - mean) / (var + 1e-5).sqrt() * weight[:, None, None] + bias[:, None, None]
    return F.conv2d(y, p[f"{prefix}.1.weight"], p[f"{prefix}.1.bias"], padding=padding)


def block_by_hand(p: dict[str, Tensor], x: Tensor, config: QonstraintConfig) -> Tensor:
    act = F.gelu if config.act == "gelu" else F.relu

    def conv1x1(name: str, value: Tensor) -> Tensor:
        return F.conv2d(value, p[f"{name}.weight"], p[f"{name}.bias"])

    mixed = conv1x1("mix_out", act(norm_then_conv(p, "mix", x, config.norm, 1)))
    x = (x + p["res_scale1"] * mixed).clamp(-6, 6)
    x = x + p["res_scale2"] * conv1x1("mlp_out", act(norm_then_conv(p, "mlp", x, config.norm, 0)))
    if config.recentre == "running":
        x = x - p["recentre.running_mean"][:, None, None]
    x = x.clamp(-6, 6)
    x = x * config.excite_gain * torch.sigmoid(conv1x1("excite.fc2", act(conv1x1("excite.fc1", x))))
    if config.clamps == "throughout":
        x = x.clamp(-6, 6)
    return x if config.recentre == "running" else x - x.mean((1, 2, 3), keepdim=True)


@pytest.mark.parametrize("name", ["nano", "nano-r", "qonstraint-5.5", "qonstraint-5.9-gap"])
def test_block(name: str) -> None:
    config = replace(QONSTRAINTS[name], num_classes=10, excite_gain=1.5)
    block = randomised(QonvViTBlock(32, config, 0.5)).double()  # where terms cancel, 32 bits leave 4e-4 on some CPUs
    x = 3 * torch.randn(2, 32, 5, 5, dtype=torch.float64)
    expected = block_by_hand({**dict(block.named_parameters()), **dict(block.named_buffers())}, x, config)
    assert torch.allclose(block(x), expected, rtol=1e-10, atol=1e-10)


def test_block_starts_with_half_residual_scales() -> None:
    block = QonvViTBlock(8, replace(QONSTRAINTS["nano"], num_classes=10), 0.0)
    assert block.res_scale1.item() == block.res_scale2.item() == 0.5


def test_initialisation_has_the_published_spread() -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(64, 64, 3)
    initialise(conv)
    # a normal cut at +-2 absolute is hardly cut when its std is 1/sqrt(576)
    assert conv.weight.std().item() == pytest.approx(1 / math.sqrt(576), rel=0.03)
    assert not conv.bias.any()  # type: ignore[union-attr]


def test_fusion() -> None:
    fusion = FusionBlockV2(24, 48, 32, 0.1, "gelu")
    randomised(fusion)
    p = {**dict(fusion.named_parameters()), **dict(fusion.named_buffers())}
    low, high = torch.randn(2, 24, 8, 8), torch.randn(2, 48, 4, 4)
    feature = F.conv2d(low, p["low.weight"], p["low.bias"])
    up = F.interpolate(F.conv2d(high, p["high.weight"], p["high.bias"]), size=(8, 8), mode="bilinear")
    tokens, context = feature.flatten(2).transpose(1, 2), up.flatten(2).transpose(1, 2)
    q = F.linear(tokens, p["query.weight"], p["query.bias"])
    k, v = (F.linear(context, p[f"{n}.weight"], p[f"{n}.bias"]) for n in ("key", "value"))
    heads = []
    for h in range(2):  # 32 channels: 2 heads of 16
        part = slice(16 * h, 16 * h + 16)
        scores = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / 4.0, dim=-1)
        heads.append(scores @ v[..., part])
    attended = F.linear(torch.cat(heads, -1), p["out.weight"], p["out.bias"]).transpose(1, 2).reshape(2, 32, 8, 8)
    gated = F.conv2d(torch.cat([attended, feature], 1), p["gate.weight"], p["gate.bias"])
    y = F.conv2d(gated, p["proj.weight"])
    y = F.batch_norm(y, p["norm.running_mean"], p["norm.running_var"], p["norm.weight"], p["norm.bias"])
    assert torch.allclose(fusion(low, high), F.gelu(y), rtol=1e-4, atol=1e-4)


def test_sota_head() -> None:
    d, n, classes = 32, 16, 5
    head = SotaHead(d, classes, n)
    randomised(head)
    with torch.no_grad():  # past the clamp, but not all of it
        head.mixer.conv.weight.mul_(0.5)
    p = {**dict(head.named_parameters()), **dict(head.named_buffers())}
    f = torch.randn(3, d, 4, 4)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (d,), p[f"{name}.weight"], p[f"{name}.bias"])

    t = torch.cat([p["cls"].expand(3, 1, d), f.flatten(2).transpose(1, 2)], 1) + p["pos"]
    a, b = linear("swiglu.w12", norm("swiglu.norm", t)).split(d, -1)
    t = t + linear("swiglu.w3", F.silu(a) * b)
    mixed = F.batch_norm(
        t.transpose(1, 2), p["mixer.norm.running_mean"], p["mixer.norm.running_var"], p["mixer.norm.weight"],
        p["mixer.norm.bias"],
    )  # fmt: skip
    t = t + F.gelu(F.conv1d(mixed, p["mixer.conv.weight"], p["mixer.conv.bias"], padding=1)).transpose(1, 2)
    assert (t.abs() > 6).any()
    t = t.clamp(-6, 6)
    cls, patches = t[:, :1], t[:, 1:]
    score = linear("reducer.score", norm("reducer.norm", patches))[..., 0]
    order = score.argsort(1, descending=True)[:, : n // 4]
    kept = torch.stack([patches[i, order[i]] * torch.sigmoid(score[i, order[i]])[:, None] for i in range(3)])
    context = norm("attention.norm", torch.cat([cls, kept], 1))
    q = linear("attention.query", cls)
    k, v = linear("attention.key_value", context).split(d, -1)
    parts = []
    for h in range(4):
        part = slice(8 * h, 8 * h + 8)
        parts.append(torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(8), -1) @ v[..., part])
    c = (cls + linear("attention.out", torch.cat(parts, -1)))[:, 0]
    c = c + c * torch.tanh(p["gate"])
    transformer = linear("classify.4", F.gelu(linear("classify.1", norm("classify.0", c))))
    mask = F.gelu(F.conv2d(f, p["spatial.0.weight"], p["spatial.0.bias"]))
    mask = torch.sigmoid(F.conv2d(mask, p["spatial.2.weight"], p["spatial.2.bias"], padding=1))
    pooled = (f * mask).mean((2, 3))
    conf = transformer.softmax(1).max(1, keepdim=True).values
    expected = (
        0.4 * conf * transformer + 0.4 * (1 - conf) * linear("conv_path", pooled) + 0.2 * linear("aux_path", pooled)
    )
    assert torch.allclose(head(f), expected, rtol=1e-4, atol=1e-4)
