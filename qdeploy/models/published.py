"""Four published networks for small images, by which papers on Tiny ImageNet compare, with their exact counts.

ResNet-20 (He et al., 2016), DenseNet-BC of 100 layers with growth rate 12 (Huang et al., 2017), PyramidNet-110 with a
widening of 48 (Han et al., 2017) and WideResNet-28-10 (Zagoruyko & Komodakis, 2016), all as for CIFAR: a stride of 1 in
the first convolution, global pooling at the end. They are baselines; nothing is folded but what the exporter folds.

Array names: B batch, C channels, H height, W width, K classes, S height and width of the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qdeploy.core.errors import InputError
from qdeploy.models.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """One of the four networks."""

    family: ClassVar[str] = "published"
    name: str
    num_classes: int = 10
    input_size: int = 64
    """Height and width of the image in pixels."""

    def __post_init__(self) -> None:
        if self.name not in NETWORKS:
            raise InputError(f"there is no published network '{self.name}'; known: {', '.join(NETWORKS)}")
        if self.num_classes < 1:
            raise InputError(f"a model needs at least 1 class, found num_classes={self.num_classes}")
        if self.input_size < 8 or self.input_size % 4:
            raise InputError(f"the input size must be a multiple of 4 and at least 8, found {self.input_size}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> PublishedConfig:
        """Rebuild a configuration from ``to_dict``."""
        return cls(**fields)

    def build(self) -> Published:
        """Build a freshly initialised model."""
        return Published(self)


class Published(Classifier):
    """One of the four networks: its features, global pooling and a linear layer."""

    config: PublishedConfig

    def __init__(self, config: PublishedConfig) -> None:
        super().__init__()
        self.config = config
        self.features, width = NETWORKS[config.name]()
        self.fc = nn.Linear(width, config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al., 2015: all four papers
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def feature_module(self) -> nn.Module:
        """Everything before the pooling."""
        return self.features

    def forward(self, image: Tensor) -> Tensor:
        """Classify normalised images ``[B, 3, S, S]``; the result is ``[B, K]``."""
        return self.fc(self.features(image).mean(dim=(2, 3)))


def conv3x3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    """Build a 3x3 convolution without bias that keeps the size, or halves it."""
    return nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)


class PaddedShortcut(nn.Module):
    """Pool or subsample, and fill up with channels of zeros: a shortcut without parameters."""

    def __init__(self, missing: int, stride: int, pooled: bool) -> None:
        super().__init__()
        self.missing, self.stride, self.pooled = missing, stride, pooled

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to ``[B, C + missing, H / stride, W / stride]``."""
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride) if self.pooled else x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.missing)) if self.missing else x


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the first behind the second's norm or not, and a shortcut."""

    def __init__(self, branch: nn.Sequential, shortcut: nn.Module, act: bool) -> None:
        super().__init__()
        self.branch, self.shortcut, self.act = branch, shortcut, act

    def forward(self, x: Tensor) -> Tensor:
        """Add branch and shortcut; a ReLU behind the sum where the paper has one."""
        y = self.branch(x) + self.shortcut(x)
        return F.relu(y) if self.act else y


class WideBlock(nn.Module):
    """Pre-activated block; where the width changes, the shortcut is a 1x1 convolution of the activated input."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.pre = nn.Sequential(nn.BatchNorm2d(c_in), nn.ReLU())
        self.branch = nn.Sequential(
            conv3x3(c_in, c_out, stride), nn.BatchNorm2d(c_out), nn.ReLU(), conv3x3(c_out, c_out)
        )
        self.project = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to ``[B, C', H / stride, W / stride]``."""
        active = self.pre(x)
        return self.branch(active) + (x if self.project is None else self.project(active))


class DenseLayer(nn.Module):
    """Bottleneck of DenseNet-BC: 1x1 to four times the growth, 3x3 to the growth, joined to the input."""

    def __init__(self, c_in: int, growth: int) -> None:
        super().__init__()
        inner = 4 * growth
        self.branch = nn.Sequential(
            nn.BatchNorm2d(c_in), nn.ReLU(), nn.Conv2d(c_in, inner, 1, bias=False),
            nn.BatchNorm2d(inner), nn.ReLU(), conv3x3(inner, growth),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to ``[B, C + growth, H, W]``."""
        return torch.cat([x, self.branch(x)], dim=1)


def resnet(depth: int) -> tuple[nn.Sequential, int]:
    """Build a ResNet of 6n + 2 layers for CIFAR with shortcuts of option A: no parameters."""
    layers: list[nn.Module] = [conv3x3(3, 16), nn.BatchNorm2d(16), nn.ReLU()]
    c_in = 16
    for stage, c_out in enumerate((16, 32, 64)):
        for block in range((depth - 2) // 6):
            stride = 2 if stage and not block else 1
            branch = nn.Sequential(
                conv3x3(c_in, c_out, stride), nn.BatchNorm2d(c_out), nn.ReLU(),
                conv3x3(c_out, c_out), nn.BatchNorm2d(c_out),
            )  # fmt: skip
            layers.append(BasicBlock(branch, PaddedShortcut(c_out - c_in, stride, pooled=False), act=True))
            c_in = c_out
    return nn.Sequential(*layers), c_in


def pyramidnet(depth: int, alpha: int) -> tuple[nn.Sequential, int]:
    """Build an additive PyramidNet of 6n + 2 layers, whose width grows in every block by the same amount."""
    layers: list[nn.Module] = [conv3x3(3, 16), nn.BatchNorm2d(16)]
    c_in, blocks = 16, (depth - 2) // 6
    for block in range(3 * blocks):
        c_out = round(16 + alpha * (block + 1) / (3 * blocks))
        stride = 2 if block in (blocks, 2 * blocks) else 1
        branch = nn.Sequential(
            nn.BatchNorm2d(c_in), conv3x3(c_in, c_out, stride), nn.BatchNorm2d(c_out), nn.ReLU(),
            conv3x3(c_out, c_out), nn.BatchNorm2d(c_out),
        )  # fmt: skip
        layers.append(BasicBlock(branch, PaddedShortcut(c_out - c_in, stride, pooled=True), act=False))
        c_in = c_out
    return nn.Sequential(*layers, nn.BatchNorm2d(c_in), nn.ReLU()), c_in


def wide_resnet(depth: int, width: int) -> tuple[nn.Sequential, int]:
    """Build a WideResNet of 6n + 4 layers, so many times as wide as the ResNet."""
    layers: list[nn.Module] = [conv3x3(3, 16)]
    c_in = 16
    for stage, c_out in enumerate((16 * width, 32 * width, 64 * width)):
        for block in range((depth - 4) // 6):
            layers.append(WideBlock(c_in, c_out, 2 if stage and not block else 1))
            c_in = c_out
    return nn.Sequential(*layers, nn.BatchNorm2d(c_in), nn.ReLU()), c_in


def densenet_bc(depth: int, growth: int) -> tuple[nn.Sequential, int]:
    """Build a DenseNet-BC: three dense blocks, between them transitions that halve channels and size."""
    c_in = 2 * growth
    layers: list[nn.Module] = [conv3x3(3, c_in)]
    for stage in range(3):
        for _ in range((depth - 4) // 6):
            layers.append(DenseLayer(c_in, growth))
            c_in += growth
        if stage < 2:
            half = nn.Conv2d(c_in, c_in // 2, 1, bias=False)
            layers += [nn.BatchNorm2d(c_in), nn.ReLU(), half, nn.AvgPool2d(2)]
            c_in //= 2
    return nn.Sequential(*layers, nn.BatchNorm2d(c_in), nn.ReLU()), c_in


NETWORKS: dict[str, Callable[[], tuple[nn.Sequential, int]]] = {
    "resnet-20": lambda: resnet(20),
    "densenet-bc-100-12": lambda: densenet_bc(100, 12),
    "pyramidnet-110": lambda: pyramidnet(110, 48),
    "wideresnet-28-10": lambda: wide_resnet(28, 10),
}
"""Each network's features and their width."""
