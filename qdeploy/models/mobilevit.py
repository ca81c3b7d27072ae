"""The MobileViT operator grid: 4 convolutions x 3 attentions x 3 fusions = 36 models.

Source: the thesis behind the grid, chapters 4 to 6; its table 6.1 gives 14 parameter counts, all met exactly
(docs/mobilevit.md says what its text leaves open and what was chosen).

Array names: B batch, C channels, H height, W width, P positions in a patch, N patches, D width of a token, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from qdeploy.core.errors import InputError, near_miss
from qdeploy.models.classifier import Classifier
from qdeploy.models.operators import ATTENTIONS, CARDINALITY, CONVOLUTIONS, FUSIONS, Mixing, grouped, unit

PATCH = 2
STRIDE = 32
"""Total stride of the network, and so the smallest height and width of an input."""
WIDTHS = (16, 16, 24, 24, 24, 48, 64, 80)
"""Channels behind the stem and behind each of the seven MV2 blocks."""
STRIDES = (1, 2, 1, 1, 2, 2, 2)
TRANSFORMERS = {48: (64, 2), 64: (80, 4), 80: (96, 3)}
"""Channels behind which a MobileViT block follows, with its tokens' width and its number of layers."""
HEAD_WIDTH = 320


@dataclass(frozen=True, kw_only=True)
class MobileVitConfig:
    """One cell of the grid."""

    family: ClassVar[str] = "mobilevit"
    conv: str = "standard"
    """standard, depthwise, grouped or pointwise; in stem, MV2 expansions, local convolutions and head."""
    attention: str = "mha"
    """mha, separable or lowrank."""
    fusion: str = "v1"
    """v1: concatenation and 3x3; v2: sum; v3: concatenation and 1x1."""
    num_classes: int = 10
    input_size: int = 64
    """Height and width of the image in pixels, 32 or more; the thesis trains at 224 and tests at 256."""
    expansions: tuple[int, ...] = (4, 4, 2, 2, 2, 2, 2)
    """Expansion of the seven MV2 blocks: the one guess behind the counts; 2 everywhere would miss 3,136 parameters."""
    groups: int = CARDINALITY
    """Most groups of the grouped convolution; the thesis' table has 2."""
    mixing: Mixing = "dense"
    """How the groups of the grouped convolution are mixed: dense, by a 1x1 convolution over all channels; or shuffle,
    by a channel shuffle and a 1x1 convolution in groups."""

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("conv", self.conv, CONVOLUTIONS),
            ("attention", self.attention, ATTENTIONS),
            ("fusion", self.fusion, FUSIONS),
        ):
            if name not in known:
                raise InputError(f"there is no {kind} '{name}'{near_miss(name, known)}; known: {', '.join(known)}")
        if self.num_classes < 1:
            raise InputError(f"a model needs at least 1 class, found num_classes={self.num_classes}")
        if self.input_size < STRIDE:
            raise InputError(f"input size {self.input_size} is too small for the strides; give {STRIDE} or more")
        if len(self.expansions) != len(STRIDES) or min(self.expansions) < 1:
            raise InputError(f"expansions must be {len(STRIDES)} numbers of 1 or more, found {self.expansions}")
        if not 1 <= self.groups <= WIDTHS[-1]:
            raise InputError(f"groups must be between 1 and {WIDTHS[-1]}, found {self.groups}")
        if self.mixing not in get_args(Mixing):
            raise InputError(f"mixing must be one of {', '.join(get_args(Mixing))}, found '{self.mixing}'")
        if self.conv != "grouped" and (self.groups, self.mixing) != (CARDINALITY, "dense"):
            raise InputError(f"groups and mixing are of the grouped convolution, found conv={self.conv}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {**asdict(self), "expansions": list(self.expansions)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> MobileVitConfig:
        """Rebuild a configuration from ``to_dict``."""
        return cls(**{**fields, "expansions": tuple(fields["expansions"])})

    def build(self) -> MobileVit:
        """Build a freshly initialised model."""
        return MobileVit(self)

    @property
    def convolution(self) -> Callable[..., nn.Module]:
        """``(c_in, c_out, kernel, stride)`` to a module."""
        if self.conv == "grouped":
            return partial(grouped, groups=self.groups, mixing=self.mixing)
        return CONVOLUTIONS[self.conv]


class InvertedResidual(nn.Module):
    """MV2: expand with the grid's convolution, 3x3 of each channel alone, project; added to its input if it fits."""

    def __init__(self, config: MobileVitConfig, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * c_in
        self.expand = config.convolution(c_in, hidden, 1)
        self.spatial = unit(hidden, hidden, 3, stride, groups=hidden)
        self.project = unit(hidden, c_out, 1, act=False)
        self.adds = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to ``[B, C', H / stride, W / stride]``."""
        y = self.project(self.spatial(self.expand(x)))
        return x + y if self.adds else y


class Layer(nn.Module):
    """A pre-norm transformer layer; its feed-forward part is twice as wide as the token."""

    def __init__(self, attention: str, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = ATTENTIONS[attention](dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))

    def forward(self, x_BPND: Tensor) -> Tensor:
        """Keep the shape ``[B, P, N, D]``."""
        x = x_BPND + self.attention(self.norm1(x_BPND))
        return x + self.feed_forward(self.norm2(x))


class MobileVitBlock(nn.Module):
    """Local features by the grid's convolution, global ones by attention among patches, fused."""

    def __init__(self, config: MobileVitConfig, channels: int, dim: int, depth: int) -> None:
        super().__init__()
        self.local = config.convolution(channels, channels, 3)
        self.widen = unit(channels, dim, 1)
        self.layers = nn.Sequential(*(Layer(config.attention, dim) for _ in range(depth)))
        self.narrow = unit(dim, channels, 1)
        self.fusion = FUSIONS[config.fusion](channels)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape ``[B, C, H, W]``."""
        local = self.local(x)
        wide = self.widen(local)
        size = wide.shape[2:]
        even = [side + side % PATCH for side in size]
        if list(size) != even:  # 2x2 patches must tile the map
            wide = F.interpolate(wide, even, mode="bilinear", align_corners=False)
        wide = folded(self.layers(patches(wide)), even)
        if list(size) != even:
            wide = F.interpolate(wide, list(size), mode="bilinear", align_corners=False)
        return self.fusion(local, self.narrow(wide))


def patches(x: Tensor) -> Tensor:
    """Cut ``[B, D, H, W]`` into 2x2 patches: ``[B, 4, H W / 4, D]``, the position in the patch first."""
    x = x.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))  # B D H/2 2 W/2 2
    return x.permute(0, 3, 5, 2, 4, 1).flatten(3, 4).flatten(1, 2)


def folded(x_BPND: Tensor, size: list[int]) -> Tensor:
    """Undo ``patches``."""
    x = x_BPND.unflatten(2, (size[0] // PATCH, size[1] // PATCH)).unflatten(1, (PATCH, PATCH))
    return x.permute(0, 5, 3, 1, 4, 2).flatten(4, 5).flatten(2, 3)


class MobileVit(Classifier):
    """The whole classifier: normalised ``[B, 3, S, S]`` images to ``[B, K]`` logits."""

    config: MobileVitConfig

    def __init__(self, config: MobileVitConfig) -> None:
        super().__init__()
        self.config = config
        conv = config.convolution
        self.stem = conv(3, WIDTHS[0], 3, 2)
        blocks: list[nn.Module] = []
        for c_in, c_out, stride, expansion in zip(WIDTHS, WIDTHS[1:], STRIDES, config.expansions, strict=False):
            blocks.append(InvertedResidual(config, c_in, c_out, stride, expansion))
            if c_out in TRANSFORMERS:
                blocks.append(MobileVitBlock(config, c_out, *TRANSFORMERS[c_out]))
        self.blocks = nn.Sequential(*blocks)
        self.head = conv(WIDTHS[-1], HEAD_WIDTH, 1)
        self.classify = nn.Linear(HEAD_WIDTH, config.num_classes)

    @property
    def feature_module(self) -> nn.Module:
        """The last convolution."""
        return self.head

    def forward(self, image: Tensor) -> Tensor:
        """Classify normalised images ``[B, 3, S, S]`` of any size from 32 on; the result is ``[B, K]``."""
        features = self.head(self.blocks(self.stem(image)))
        return self.classify(features.mean(dim=(2, 3)))


def create_mobilevit(
    *, conv: str = "standard", attention: str = "mha", fusion: str = "v1", num_classes: int = 10, input_size: int = 64
) -> MobileVit:
    """Build a model of the grid.

    Raises:
        InputError: If an operator is unknown, or a number is out of range.
    """
    return MobileVitConfig(
        conv=conv, attention=attention, fusion=fusion, num_classes=num_classes, input_size=input_size
    ).build()
