"""The Qonstraint family: stem, QonvViT blocks, backbone, FusionBlockV2 and the whole model.

Source: N. Gupta, "Qonstraint 5.9", IJRASET 13(VII), July 2025. The paper gives no code; where its text is
ambiguous the reading taken is the one that meets its own parameter counts (docs/models.md).

Array names: B batch, C channels, H height, W width, N tokens, K classes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qdeploy.core.errors import InputError
from qdeploy.models.classifier import Classifier, Paths
from qdeploy.models.heads import GapHead, HeadNorm, HybridHead, SotaHead
from qdeploy.models.layers import (
    CLAMP,
    Activation,
    DropPath,
    Norm,
    RunningRecentre,
    TokenExcite,
    activation,
    initialise,
    norm_conv,
)

Head = Literal["gap", "sota", "gap+sota"]
Stem = Literal["soft", "aggressive"]
Recentre = Literal["sample", "running"]
Clamps = Literal["once", "throughout"]
_CHOICES = {
    name: get_args(kind)
    for name, kind in (
        ("head", Head), ("stem", Stem), ("recentre", Recentre), ("norm", Norm), ("act", Activation),
        ("head_norm", HeadNorm), ("clamps", Clamps), ("stage_kernel", Literal[2, 3]),
    )
}  # fmt: skip
_RANGES = {
    "excite_gain": (0.01, 10), "res_scale": (-10, 10), "drop_path": (0, 0.9), "head_drop_path": (0, 0.9),
    "stem_dropout": (0, 0.9), "fusion_dropout": (0, 0.9),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class QonstraintConfig:
    """Everything that decides the shape of a Qonstraint model."""

    family: ClassVar[str] = "qonstraint"
    dims: tuple[int, int, int, int]
    """Channels of the stem and of the three stages."""
    depths: tuple[int, int, int]
    """QonvViT blocks in each stage."""
    fusion_dim: int
    """Channels of FusionBlockV2 and the head."""
    num_classes: int
    input_size: int = 64
    """Height and width of the image in pixels; the paper's and our only published size."""
    head: Head = "gap"
    """gap: pooling and a linear layer; sota: the paper's three paths; gap+sota: both, mixed by a learned number."""
    norm: Norm = "layernorm"
    """layernorm is the paper's 5.9, batchnorm its 5.5 and 5.6, foldable the deployable form of the latter."""
    stem: Stem = "soft"
    act: Activation = "gelu"
    recentre: Recentre = "sample"
    """sample: the paper's literal form; running: per channel, foldable."""
    excite_gain: float = 2.0
    """2: identity at the start; 1: the paper's literal sigmoid gate."""
    res_scale: float = 0.5
    """Initial value of the learnable scale of each residual branch."""
    drop_path: float = 0.1
    """Stochastic depth of the last block; rises linearly from 0."""
    stem_dropout: float = 0.05
    fusion_dropout: float = 0.1
    head_norm: HeadNorm = "mixed"
    """Norms of the SOTA head; the named models have layernorm (5.9) or batchnorm (5.5, 5.6)."""
    head_drop_path: float = 0.0
    """Stochastic depth of the SOTA head's residual branches (paper, III.B.5)."""
    clamps: Clamps = "once"
    """throughout: also behind the gate of every block, whose gain of up to 2 would leave the bounds, and after every
    stage of the SOTA head; once: as models were before there was the choice, and cheaper."""
    stage_kernel: int = 3
    """Height and width of the strided convolution of each stage; 2 with depths 1, 3, 4 meets the paper's count too."""

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise InputError(f"a model needs at least 1 class, found num_classes={self.num_classes}")
        stride = 16 if self.stem == "soft" else 32
        if self.input_size < 32 or self.input_size % stride:
            raise InputError(
                f"input size {self.input_size} does not fit the strides; give a multiple of {stride}, at least 32"
            )
        for name, legal in _CHOICES.items():
            if getattr(self, name) not in legal:
                raise InputError(f"{name} must be one of {', '.join(map(str, legal))}, found {getattr(self, name)!r}")
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} must be between {low:g} and {high:g}, found {getattr(self, name)}")
        for name, count in (("dims", 4), ("depths", 3)):
            values = getattr(self, name)
            if len(values) != count or min(values) < 1:
                raise InputError(f"{name} must be {count} numbers of 1 or more, found {values}")
        multiple = max(1, min(8, self.fusion_dim // 16))
        if self.fusion_dim < 8 or self.fusion_dim % max(multiple, 4):
            raise InputError(
                f"fusion_dim must be a multiple of {max(multiple, 4)} and at least 8, found {self.fusion_dim}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> QonstraintConfig:
        """Rebuild a configuration from ``to_dict``."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values)

    def build(self) -> Qonstraint:
        """Build a freshly initialised model."""
        return Qonstraint(self)


class StemBlock(nn.Sequential):
    """Convolution, BatchNorm, ReLU, dropout; dense for the first block, depthwise-separable for the others."""

    def __init__(self, c_in: int, c_out: int, stride: int, separable: bool, dropout: float) -> None:
        if separable:
            conv: nn.Module = nn.Sequential(
                nn.Conv2d(c_in, c_in, 3, stride, 1, groups=c_in, bias=False),
                nn.Conv2d(c_in, c_out, 1, bias=False),
            )
        else:
            conv = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        super().__init__(conv, nn.BatchNorm2d(c_out), nn.ReLU(), nn.Dropout2d(dropout))


def build_stem(config: QonstraintConfig) -> nn.Sequential:
    """Build the convolution stem (paper, III.B and IV.B): ``[B, 3, S, S]`` to ``[B, C0, S/2, S/2]``.

    The soft stem has strides 1, 1, 2; the aggressive one 2, 2, 1 and gives ``[B, C0, S/4, S/4]``.
    """
    c0 = config.dims[0]
    widths = (3, max(8, c0 // 4), max(8, c0 // 2), c0)
    strides = (1, 1, 2) if config.stem == "soft" else (2, 2, 1)
    return nn.Sequential(
        *(StemBlock(widths[i], widths[i + 1], strides[i], i > 0, config.stem_dropout) for i in range(3))
    )


class QonvViTBlock(nn.Module):
    """Token mixing by a dense 3x3, a channel MLP, a gate per token; clamped and re-centred (paper, III.B)."""

    def __init__(self, channels: int, config: QonstraintConfig, drop_path: float) -> None:
        super().__init__()
        hidden = 4 * channels
        self.mix = norm_conv(config.norm, nn.Conv2d(channels, channels, 3, padding=1))
        self.mix_out = nn.Conv2d(channels, channels, 1)
        self.mlp = norm_conv(config.norm, nn.Conv2d(channels, hidden, 1))
        self.mlp_out = nn.Conv2d(hidden, channels, 1)
        self.res_scale1 = nn.Parameter(torch.tensor(config.res_scale))
        self.res_scale2 = nn.Parameter(torch.tensor(config.res_scale))
        self.act = activation(config.act)
        self.drop_path = DropPath(drop_path)
        self.excite = TokenExcite(channels, config.excite_gain, config.act)
        self.recentre = RunningRecentre(channels) if config.recentre == "running" else None
        self.clamp_gate = config.clamps == "throughout"

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to the same shape."""
        x = x + self.drop_path(self.res_scale1 * self.mix_out(self.act(self.mix(x))))
        x = x.clamp(-CLAMP, CLAMP)
        x = x + self.drop_path(self.res_scale2 * self.mlp_out(self.act(self.mlp(x))))
        if self.recentre is not None:  # before the clamp, so that it folds into the bias of mlp_out
            return self._gated(self.recentre(x).clamp(-CLAMP, CLAMP))
        x = self._gated(x.clamp(-CLAMP, CLAMP))
        return x - x.mean(dim=(1, 2, 3), keepdim=True)

    def _gated(self, x: Tensor) -> Tensor:
        x = self.excite(x)
        return x.clamp(-CLAMP, CLAMP) if self.clamp_gate else x


class Backbone(nn.Module):
    """Three stages, each a strided 3x3 convolution, an activation and its QonvViT blocks."""

    def __init__(self, config: QonstraintConfig) -> None:
        super().__init__()
        total = sum(config.depths)
        rates = [config.drop_path * i / max(1, total - 1) for i in range(total)]
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(config.depths):
            c_in, c_out = config.dims[stage], config.dims[stage + 1]
            first = sum(config.depths[:stage])
            blocks = [QonvViTBlock(c_out, config, rates[first + i]) for i in range(depth)]
            padding = 1 if config.stage_kernel == 3 else 0
            down = nn.Conv2d(c_in, c_out, config.stage_kernel, stride=2, padding=padding)
            self.stages.append(nn.Sequential(down, activation(config.act), *blocks))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of stage 2 and stage 3: ``[B, C2, H, W]`` and ``[B, C3, H/2, W/2]``."""
        x = self.stages[0](x)
        low = self.stages[1](x)
        return low, self.stages[2](low)


class FusionBlockV2(nn.Module):
    """Cross-attention from the low to the high features, then a linear gate and a projection (paper, III.B)."""

    def __init__(self, low_dim: int, high_dim: int, dim: int, dropout: float, act: Activation) -> None:
        super().__init__()
        self.num_heads = max(1, min(8, dim // 16))
        self.low = nn.Conv2d(low_dim, dim, 1)
        self.high = nn.Conv2d(high_dim, dim, 1)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.gate = nn.Conv2d(2 * dim, dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        self.act = activation(act)
        self.dropout = nn.Dropout(dropout)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Fuse ``[B, C2, H, W]`` and ``[B, C3, H/2, W/2]`` into ``[B, d, H, W]``."""
        l_feat = self.low(low)
        up = F.interpolate(self.high(high), scale_factor=2, mode="bilinear", align_corners=False)
        attended = self._attend(l_feat.flatten(2).mT, up.flatten(2).mT)
        gated = self.gate(torch.cat([attended.mT.unflatten(2, low.shape[2:]), l_feat], dim=1))
        return self.dropout(self.act(self.norm(self.proj(gated))))

    def _attend(self, query_BNC: Tensor, context_BNC: Tensor) -> Tensor:
        q = self._heads(self.query(query_BNC))
        k, v = self._heads(self.key(context_BNC)), self._heads(self.value(context_BNC))
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return self.out((self.dropout(weights) @ v).transpose(1, 2).flatten(2))

    def _heads(self, x_BNC: Tensor) -> Tensor:
        return x_BNC.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


def _head(config: QonstraintConfig, num_tokens: int) -> GapHead | SotaHead | HybridHead:
    if config.head == "gap":
        return GapHead(config.fusion_dim, config.num_classes)
    sota = SotaHead(
        config.fusion_dim,
        config.num_classes,
        num_tokens=num_tokens,
        norm=config.head_norm,
        drop_path=config.head_drop_path,
        clamp_stages=config.clamps == "throughout",
    )
    return sota if config.head == "sota" else HybridHead(GapHead(config.fusion_dim, config.num_classes), sota)


class Qonstraint(Classifier):
    """The whole classifier: normalised ``[B, 3, S, S]`` images to ``[B, K]`` logits."""

    config: QonstraintConfig

    def __init__(self, config: QonstraintConfig) -> None:
        super().__init__()
        self.config = config
        _, _, c2, c3 = config.dims
        self.stem = build_stem(config)
        self.backbone = Backbone(config)
        self.fusion = FusionBlockV2(c2, c3, config.fusion_dim, config.fusion_dropout, config.act)
        side = config.input_size // (8 if config.stem == "soft" else 16)
        self.head = _head(config, num_tokens=side * side)
        initialise(self)
        for module in self.modules():
            if isinstance(module, TokenExcite):  # starts as the identity
                nn.init.zeros_(module.fc2.weight)

    @property
    def feature_module(self) -> nn.Module:
        """The fused features, which the head sees."""
        return self.fusion

    def features(self, image: Tensor) -> Tensor:
        """Return the fused features ``[B, d, S/8, S/8]`` (S/16 with the aggressive stem)."""
        low, high = self.backbone(self.stem(image))
        return self.fusion(low, high)

    def forward(self, image: Tensor) -> Tensor:
        """Classify normalised images ``[B, 3, S, S]``; the result is ``[B, K]``."""
        return self.head(self.features(image))

    def forward_paths(self, image: Tensor, labels: Tensor | None = None) -> Paths:
        """Return the logits and, with the SOTA head, those of the paths that have a training loss of their own.

        Args:
            image: Normalised images ``[B, 3, S, S]``.
            labels: ``[B]``; makes the head's confidence the probability of the true class, as the paper says.
                For training only: the label leaks into the logits.
        """
        return self.head.forward_paths(self.features(image), labels)
