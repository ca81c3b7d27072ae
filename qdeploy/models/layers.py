"""The layers of the Qonstraint models: norms, drop path, token gate, re-centring.

Array names: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["layernorm", "batchnorm", "foldable"]
Activation = Literal["gelu", "relu"]

CLAMP = 6.0
"""Bound of the residual stream (paper, III.B: values are clamped to [-6, 6])."""


def activation(name: Activation) -> nn.Module:
    """Build an activation by name."""
    return nn.GELU() if name == "gelu" else nn.ReLU()


def initialise(module: nn.Module) -> None:
    """Initialise every convolution and linear layer: truncated normal, std 1/sqrt(fan_in), zero bias."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            fan_in = layer.weight[0].numel()
            nn.init.trunc_normal_(layer.weight, std=1.0 / math.sqrt(fan_in))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position of a ``[B, C, H, W]`` tensor."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[B, C, H, W]`` over C."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FoldableNormConv(nn.Module):
    """BatchNorm and convolution as one module whose inference form is exactly one convolution.

    A BatchNorm before a zero-padded convolution cannot be folded, because the border sees 0 and not
    BN(0). Here the padding belongs to the input: ``conv(BN(x) - BN(0)) + sum(W) * BN(0)``, so the border
    sees BN(0), in training as in inference, and the normalisation is a change of weight and bias.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, conv: nn.Conv2d, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        channels = conv.in_channels
        self.conv = conv
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.momentum, self.eps = momentum, eps
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to the convolution's output."""
        weight, bias = self.folded(*self._statistics(x))
        return F.conv2d(x, weight, bias, padding=self.conv.padding)

    def folded(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight and bias of the one convolution that equals norm and convolution.

        Args:
            mean: Mean of each input channel, ``[C]``.
            var: Biased variance of each input channel, ``[C]``.
        """
        gain = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * gain  # BN(0)
        weight = self.conv.weight * gain[None, :, None, None]
        bias = self.conv.weight.sum((2, 3)) @ shift
        return weight, bias if self.conv.bias is None else bias + self.conv.bias

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return self.running_mean, self.running_var
        var, mean = torch.var_mean(x.float(), dim=(0, 2, 3), unbiased=False)
        with torch.no_grad():
            count = x.numel() // x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / max(1, count - 1)), self.momentum)
        return mean, var


def norm_conv(norm: Norm, conv: nn.Conv2d) -> nn.Module:
    """Put a norm of the given kind before a convolution."""
    if norm == "foldable":
        return FoldableNormConv(conv)
    before = ChannelLayerNorm(conv.in_channels) if norm == "layernorm" else nn.BatchNorm2d(conv.in_channels)
    return nn.Sequential(before, conv)


class DropPath(nn.Module):
    """Per-sample stochastic depth whose rate follows the controller's confidence (paper, III.C)."""

    MAX_RATE = 0.3
    keep: Tensor

    def __init__(self, base_rate: float) -> None:
        super().__init__()
        self.base_rate = base_rate
        self.rate = base_rate
        # a tensor: torch.compile would compile again for each new value of a number
        self.register_buffer("keep", torch.tensor(1.0 - base_rate), persistent=False)

    def set_confidence(self, confidence: float) -> None:
        """Scale the rate by ``0.5 + confidence``, at most 0.3: the surer, the stronger."""
        rate = min(self.MAX_RATE, self.base_rate * (0.5 + confidence))
        if rate != self.rate:
            self.rate = rate
            self.keep.fill_(1.0 - rate)

    def forward(self, x: Tensor) -> Tensor:
        """Zero whole samples of ``[B, ...]`` and rescale the rest; identity at inference."""
        if not self.training or self.base_rate == 0.0:
            return x
        kept = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) < self.keep
        return x * (kept / self.keep).to(x.dtype)


class TokenExcite(nn.Module):
    """A gate for each position: ``x * gain * sigmoid(fc2(act(fc1(x))))`` (paper, III.B).

    With gain 2 and a zero-initialised ``fc2`` it starts as the identity; gain 1 is the paper's literal form,
    which halves the stream in every block.
    """

    def __init__(self, channels: int, gain: float, act: Activation) -> None:
        super().__init__()
        hidden = max(8, channels // 16)
        self.gain = gain
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.act = activation(act)
        self.fc2 = nn.Conv2d(hidden, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each position of ``[B, C, H, W]``."""
        return x * (self.gain * torch.sigmoid(self.fc2(self.act(self.fc1(x)))))


class RunningRecentre(nn.Module):
    """Subtract a mean per channel: the batch's in training, a running one at inference (foldable)."""

    running_mean: Tensor

    def __init__(self, channels: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Centre ``[B, C, H, W]`` over B, H and W."""
        mean = self.running_mean
        if self.training:
            mean = x.float().mean(dim=(0, 2, 3))
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
        return x - mean[None, :, None, None].to(x.dtype)
