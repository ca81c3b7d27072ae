"""The two classification heads of the paper, GAP + linear and the triple-path "SOTA" head, and one that joins them.

Array names: B batch, C channels (= d), N patch tokens, K classes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qdeploy.models.classifier import Paths
from qdeploy.models.layers import CLAMP, DropPath

HeadNorm = Literal["mixed", "layernorm", "batchnorm"]
"""layernorm is the paper's 5.9, batchnorm its 5.5 and 5.6 (IV.D); mixed, a BatchNorm in the token mixer alone, is III.B
and what models had that are older than the choice."""


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm of each channel of tokens ``[B, N, C]``, or of one vector an image ``[B, C]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        return super().forward(x.mT).mT if x.dim() == 3 else super().forward(x)


def token_norm(kind: HeadNorm, dim: int) -> nn.Module:
    """Build a norm of tokens."""
    return TokenBatchNorm(dim) if kind == "batchnorm" else nn.LayerNorm(dim)


class GapHead(nn.Module):
    """Global average pooling and a linear layer: the head of the paper's reported model."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[B, d, H, W]`` to logits ``[B, K]``."""
        return self.fc(features.mean(dim=(2, 3)))

    def forward_paths(self, features: Tensor, labels: Tensor | None = None) -> Paths:
        """Return the logits; there are no other paths, and no use for labels."""
        return Paths(self(features), None, None)


class SwiGlu(nn.Module):
    """Pre-normed gated MLP on tokens ``[B, N, C]`` with a residual connection."""

    def __init__(self, dim: int, dropout: float, norm: HeadNorm = "mixed", drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm = token_norm(norm, dim)
        self.w12 = nn.Linear(dim, 2 * dim)
        self.w3 = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, t: Tensor) -> Tensor:
        """Keep the shape ``[B, N, C]``."""
        a, b = self.w12(self.norm(t)).chunk(2, dim=-1)
        return t + self.drop_path(self.dropout(self.w3(self.dropout(F.silu(a) * b))))


class TokenMixer(nn.Module):
    """A width-3 convolution along the token axis with a residual connection."""

    def __init__(self, dim: int, dropout: float, norm: HeadNorm = "mixed", drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm = token_norm("batchnorm" if norm == "mixed" else norm, dim)
        self.conv = nn.Conv1d(dim, dim, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, t: Tensor) -> Tensor:
        """Keep the shape ``[B, N, C]``."""
        return t + self.drop_path(self.dropout(F.gelu(self.conv(self.norm(t).mT))).mT)


class TokenReducer(nn.Module):
    """Keep the quarter of the tokens with the highest score, scaled by the score's sigmoid.

    The scaling is ours: without it top-k gives the scorer no gradient.
    """

    def __init__(self, dim: int, keep: int, norm: HeadNorm = "mixed") -> None:
        super().__init__()
        self.keep = keep
        self.norm = token_norm(norm, dim)
        self.score = nn.Linear(dim, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``[B, N, C]`` to ``[B, keep, C]``."""
        score = self.score(self.norm(tokens)).squeeze(-1)
        best, index = score.topk(self.keep, dim=1)
        kept = tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        return kept * torch.sigmoid(best).unsqueeze(-1)


class ClassTokenAttention(nn.Module):
    """The class token attends to itself and to the kept tokens, 4 heads."""

    NUM_HEADS = 4

    def __init__(self, dim: int, dropout: float, norm: HeadNorm = "mixed", drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm = token_norm(norm, dim)
        self.drop_path = DropPath(drop_path)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, cls: Tensor, kept: Tensor) -> Tensor:
        """Update ``cls`` ``[B, 1, C]`` from ``kept`` ``[B, N, C]``."""
        context = self.norm(torch.cat([cls, kept], dim=1))
        q = self._heads(self.query(cls))
        k, v = (self._heads(x) for x in self.key_value(context).chunk(2, dim=-1))
        weights = self.dropout((q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1))
        return cls + self.drop_path(self.out((weights @ v).transpose(1, 2).flatten(2)))

    def _heads(self, x_BNC: Tensor) -> Tensor:
        return x_BNC.unflatten(2, (self.NUM_HEADS, -1)).transpose(1, 2)


class SotaHead(nn.Module):
    """The paper's ``SOTAQlassifierHead``: a transformer, a convolutional and an auxiliary path.

    ``logits = 0.4 conf T + 0.4 (1 - conf) C + 0.2 A`` with ``conf`` the detached largest softmax probability
    of T, in training as in inference (the paper's, which needs the label, would leak it).
    C and A are averages of 1x1 convolutions, which equal linear layers on the pooled vector.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        num_tokens: int,
        dropout: float = 0.1,
        norm: HeadNorm = "mixed",
        drop_path: float = 0.0,
        clamp_stages: bool = False,
    ) -> None:
        """Build the head.

        Args:
            dim: Channels of the features and width of the tokens.
            num_classes: Length of the logits.
            num_tokens: Positions of the features.
            dropout: Probability of every dropout.
            norm: Kind of the norms.
            drop_path: Base rate of the stochastic depth of the three residual branches.
            clamp_stages: Clamp after every residual branch, not only after the token mixer.
        """
        super().__init__()
        self.clamp_stages = clamp_stages
        self.cls = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.pos = nn.Parameter(torch.randn(1, num_tokens + 1, dim) * 0.02)
        self.swiglu = SwiGlu(dim, dropout, norm, drop_path)
        self.mixer = TokenMixer(dim, dropout, norm, drop_path)
        self.reducer = TokenReducer(dim, keep=max(1, num_tokens // 4), norm=norm)
        self.attention = ClassTokenAttention(dim, dropout, norm, drop_path)
        self.gate = nn.Parameter(torch.zeros(dim))
        self.classify = nn.Sequential(
            token_norm(norm, dim), nn.Linear(dim, dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, num_classes)
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(dim, dim // 8, 1), nn.GELU(), nn.Conv2d(dim // 8, 1, 3, padding=1), nn.Sigmoid()
        )
        self.conv_path = nn.Linear(dim, num_classes)
        self.aux_path = nn.Linear(dim, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[B, d, H, W]`` to logits ``[B, K]``."""
        return self.combine(*self.paths(features))

    def forward_paths(self, features: Tensor, labels: Tensor | None = None) -> Paths:
        """Return the logits and those of the paths with a loss of their own; for ``labels`` see ``combine``."""
        transformer, conv, auxiliary = self.paths(features)
        return Paths(self.combine(transformer, conv, auxiliary, labels), transformer, auxiliary)

    def paths(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits of the transformer, convolutional and auxiliary paths, each ``[B, K]``."""
        tokens = features.flatten(2).mT
        cls = self.cls.expand(tokens.shape[0], -1, -1)
        t = self._stage(self.swiglu(torch.cat([cls, tokens], dim=1) + self.pos))
        t = self.mixer(t).clamp(-CLAMP, CLAMP)
        c = self._stage(self.attention(t[:, :1], self.reducer(t[:, 1:]))[:, 0])
        c = self._stage(c + c * torch.tanh(self.gate))
        pooled = (features * self.spatial(features)).mean(dim=(2, 3))
        return self.classify(c), self.conv_path(pooled), self.aux_path(pooled)

    def _stage(self, x: Tensor) -> Tensor:
        return x.clamp(-CLAMP, CLAMP) if self.clamp_stages else x

    @staticmethod
    def combine(transformer: Tensor, conv: Tensor, aux: Tensor, labels: Tensor | None = None) -> Tensor:
        """Weigh the three paths by the transformer path's confidence (paper, III.B).

        With ``labels`` ``[B]`` the confidence is the probability of the true class: training only.
        """
        probabilities = transformer.detach().softmax(dim=-1)
        best = probabilities.amax(dim=-1, keepdim=True)
        conf = best if labels is None else probabilities.gather(1, labels[:, None])
        return 0.4 * conf * transformer + 0.4 * (1.0 - conf) * conv + 0.2 * aux


class HybridHead(nn.Module):
    """Both heads on the same features, mixed by one learned number (the paper's future work; the form is ours).

    ``logits = gap + share (sota - gap)`` with ``share`` starting at one half.
    """

    def __init__(self, gap: GapHead, sota: SotaHead) -> None:
        super().__init__()
        self.gap, self.sota = gap, sota
        self.share = nn.Parameter(torch.tensor(0.5))

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[B, d, H, W]`` to logits ``[B, K]``."""
        return self._mixed(self.gap(features), self.sota(features))

    def forward_paths(self, features: Tensor, labels: Tensor | None = None) -> Paths:
        """Return the mixed logits and those of the SOTA head's paths; for ``labels`` see ``SotaHead.combine``."""
        paths = self.sota.forward_paths(features, labels)
        return paths._replace(logits=self._mixed(self.gap(features), paths.logits))

    def _mixed(self, gap: Tensor, sota: Tensor) -> Tensor:
        return gap + self.share * (sota - gap)
