"""The operators of the MobileViT grid: four convolutions, three attentions, three fusions, each a registry.

Where the thesis' text and its parameter table disagree, these follow the table (docs/mobilevit.md).

Array names: B batch, C channels, H height, W width, P positions in a patch, N patches, D width of a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

Mixing = Literal["dense", "shuffle"]
CARDINALITY = 2
"""Most groups of the grouped convolution, if nothing else is asked for; the thesis' text says 8, its table 2."""
HEADS = 4
MHA_INNER = 128
"""Width of queries, keys and values of multi-head attention, whatever the token's width (table)."""


def unit(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    """Build convolution without bias, BatchNorm and, unless left out, SiLU."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), *([nn.SiLU()] if act else []))


def standard(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Module:
    """Build a dense convolution."""
    return unit(c_in, c_out, kernel, stride)


def depthwise(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Module:
    """Build a convolution of each channel alone, then a 1x1 convolution."""
    return nn.Sequential(unit(c_in, c_in, kernel, stride, groups=c_in), unit(c_in, c_out, 1))


def grouped(
    c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = CARDINALITY, mixing: Mixing = "dense"
) -> nn.Module:
    """Build a convolution in groups that keeps the width, then a 1x1 convolution.

    Args:
        c_in: Channels of the input.
        c_out: Channels of the output.
        kernel: Height and width of the first convolution's kernel.
        stride: Stride of the first convolution.
        groups: Most groups; what is taken is the largest number up to it that divides both widths.
        mixing: dense: the 1x1 convolution sees all channels (the thesis' table); shuffle: it is in groups, too, and a
            channel shuffle between the two lets each of its groups see several of the first (ShuffleNet, arXiv
            1707.01083; the thesis' future work).
    """
    groups = next(g for g in range(min(groups, c_in), 0, -1) if c_in % g == c_out % g == 0)
    spatial = unit(c_in, c_in, kernel, stride, groups=groups)
    if mixing == "dense" or groups == 1:
        return nn.Sequential(spatial, unit(c_in, c_out, 1))
    return nn.Sequential(spatial, ChannelShuffle(groups), unit(c_in, c_out, 1, groups=groups))


class ChannelShuffle(nn.Module):
    """Deal the channels of the groups out in turn: one of the first, one of the second, and so on."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape ``[B, C, H, W]``."""
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


def pointwise(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Module:
    """Build a 1x1 convolution in place of one of any kernel."""
    layers = unit(c_in, c_out, 1, stride)
    if stride > 1 and c_in < 8:
        layers[0] = StridedPoints(c_in, c_out, 1, stride, bias=False)
    return layers


class StridedPoints(nn.Conv2d):
    """A 1x1 convolution with a stride, of few channels; in training it takes the positions first, which is the same.

    The weight's gradient of such a convolution, of less than 8 channels and channels-last, writes outside its memory in
    PyTorch 2.14 on CPUs with AVX2 and without AVX-512: the process ends with "double free or corruption".
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, C', H / stride, W / stride]``, rounded up, of ``[B, C, H, W]``."""
        if not self.training:
            return super().forward(x)
        down, right = self.stride
        return nn.functional.conv2d(x[..., ::down, ::right], self.weight, self.bias)


class MultiHeadAttention(nn.Module):
    """Softmax attention, 4 heads of 32: ``513 D`` parameters."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * MHA_INNER, bias=False)
        self.out = nn.Linear(MHA_INNER, dim)

    def forward(self, x_BPND: Tensor) -> Tensor:
        """Mix the N patches of each position; keeps the shape."""
        q, k, v = (heads(part) for part in self.qkv(x_BPND).chunk(3, dim=-1))
        return self.out(attended(q, k, v))


class SeparableAttention(nn.Module):
    """One context vector instead of an N x N matrix: ``2 D^2 + 2 D`` parameters (thesis, 4.3; the form is ours)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BPND: Tensor) -> Tensor:
        """Mix the N patches of each position; keeps the shape."""
        u = self.project(x_BPND)
        context = (u * x_BPND).mean(dim=2, keepdim=True)
        return self.out(u * context)


class LowRankAttention(nn.Module):
    """Softmax attention with keys and values of a head passed through a matrix: ``4 D^2 + D + 2 (D/4)^2`` parameters.

    The N x N softmax remains, whatever the thesis says of its cost.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        rank = dim // HEADS
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.compress = nn.Linear(rank, rank, bias=False)
        self.expand = nn.Linear(rank, rank, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BPND: Tensor) -> Tensor:
        """Mix the N patches of each position; keeps the shape."""
        q, k, v = (heads(part) for part in self.qkv(x_BPND).chunk(3, dim=-1))
        k, v = self.compress(k), self.compress(v)
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return self.out(merged(self.expand(scores @ v)))


def heads(x_BPND: Tensor) -> Tensor:
    """Split ``[B, P, N, D]`` into ``[B, P, heads, N, D / heads]``."""
    return x_BPND.unflatten(-1, (HEADS, -1)).transpose(-2, -3)


def merged(x: Tensor) -> Tensor:
    """Undo ``heads``."""
    return x.transpose(-2, -3).flatten(-2)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the merged heads of softmax attention."""
    return merged((q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v)


class ConcatFusion(nn.Module):
    """Concatenate and convolve: kernel 3 is v1 (``18 C^2 + 2 C`` parameters), kernel 1 is v3 (``2 C^2 + 2 C``)."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.mix = unit(2 * channels, channels, kernel)

    def forward(self, local: Tensor, globe: Tensor) -> Tensor:
        """Fuse two ``[B, C, H, W]`` into one."""
        return self.mix(torch.cat([globe, local], dim=1))


class AddFusion(nn.Module):
    """v2: the sum, without parameters."""

    def forward(self, local: Tensor, globe: Tensor) -> Tensor:
        """Fuse two ``[B, C, H, W]`` into one."""
        return local + globe


CONVOLUTIONS: dict[str, Callable[..., nn.Module]] = {
    "standard": standard,
    "depthwise": depthwise,
    "grouped": grouped,
    "pointwise": pointwise,
}
"""``(c_in, c_out, kernel, stride)`` to a module."""
ATTENTIONS: dict[str, Callable[[int], nn.Module]] = {
    "mha": MultiHeadAttention,
    "separable": SeparableAttention,
    "lowrank": LowRankAttention,
}
"""Width of a token to a module on ``[B, P, N, D]``."""
FUSIONS: dict[str, Callable[[int], nn.Module]] = {
    "v1": lambda channels: ConcatFusion(channels, 3),
    "v2": lambda channels: AddFusion(),
    "v3": lambda channels: ConcatFusion(channels, 1),
}
"""Channels to a module that takes the local and the global features."""
