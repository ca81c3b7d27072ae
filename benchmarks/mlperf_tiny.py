"""The two image classifiers of MLPerf Tiny, by the descriptions in its repository, with random weights.

ResNet of 8 layers for CIFAR-10's 32x32 pixels: 16, 32 and 64 channels, the shortcuts of the second and third stage a
1x1 convolution. MobileNet (version 1) of width 0.25 for the visual wake words' 96x96 pixels, here with 10 classes
instead of 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIZES = {"mlperf/resnet8": 32, "mlperf/mobilenet_v1_025": 96}
_MOBILENET = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *((128, 1),) * 5, (256, 2), (256, 1))
"""Channels and stride of each pair of a depthwise and a 1x1 convolution."""


def tiny(name: str, classes: int) -> nn.Module:
    """Return a network by its name in ``SIZES``."""
    if name == "mlperf/resnet8":
        stages = (_Stage(16, 16, 1), _Stage(16, 32, 2), _Stage(32, 64, 2))
        return nn.Sequential(*_conv(3, 16, 3), nn.ReLU(), *stages, *_head(64, classes))
    layers: list[nn.Module] = [*_conv(3, 8, 3, 2), nn.ReLU()]
    channels = 8
    for outputs, stride in _MOBILENET:
        layers += [*_conv(channels, channels, 3, stride, groups=channels), nn.ReLU()]
        layers += [*_conv(channels, outputs, 1), nn.ReLU()]
        channels = outputs
    return nn.Sequential(*layers, *_head(channels, classes))


def _conv(inputs: int, outputs: int, side: int, stride: int = 1, groups: int = 1) -> tuple[nn.Module, nn.Module]:
    layer = nn.Conv2d(inputs, outputs, side, stride, side // 2, groups=groups, bias=False)
    return layer, nn.BatchNorm2d(outputs)


def _head(channels: int, classes: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)


class _Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(inputs, outputs, 3, stride), nn.ReLU(), *_conv(outputs, outputs, 3))
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))
