"""The inference form of a model: images in, normalisation inside; for Qonstraint the same function in fewer operations.

Exact up to float32 rounding (tested at 1e-5 on the logits of every configuration): BatchNorms and residual
scales go into convolutions, the running re-centring into a bias, the input's scale into the first convolution,
and FusionBlockV2's chains of linear maps become one map each, with the bilinear upsampling as a matrix.
Weights are composed in float64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qdeploy.models.layers import CLAMP, FoldableNormConv
from qdeploy.models.qonstraint import FusionBlockV2, Qonstraint, QonvViTBlock, StemBlock


def deploy(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Return a copy of a trained model in its inference form."""
    if isinstance(model, Qonstraint):
        return DeployedQonstraint(model, mean, std)
    return Deployed(model, mean, std)


class Deployed(nn.Module):
    """uint8 images ``[B, S, S, 3]`` in, float32 logits and probabilities ``[B, K]`` out.

    This is the form of every model that is no Qonstraint: the exporter folds a BatchNorm behind a convolution itself.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("offset", 255.0 * torch.tensor(mean).reshape(1, 3, 1, 1))
        self.register_buffer("scale", 1.0 / (255.0 * torch.tensor(std)).reshape(1, 3, 1, 1))
        with torch.no_grad():  # else the weights of a copied ScriptModule are results of a computation
            self.model = copy.deepcopy(model).cpu()
        self.requires_grad_(False).eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Classify images; normalisation is inside."""
        nchw = image.float().permute(0, 3, 1, 2).contiguous()  # cast first: TensorRT transposes no uint8
        logits = self.model((nchw - self.offset) * self.scale)
        return logits, logits.softmax(dim=-1)


class DeployedQonstraint(nn.Module):
    """A folded Qonstraint: uint8 images ``[B, S, S, 3]`` in, float32 logits and probabilities ``[B, K]`` out."""

    offset: Tensor

    def __init__(self, model: Qonstraint, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        model = copy.deepcopy(model).eval().requires_grad_(False).cpu()
        side = model.config.input_size // (8 if model.config.stem == "soft" else 16)
        self.register_buffer("offset", 255.0 * torch.tensor(mean).reshape(1, 3, 1, 1))
        self.stem = nn.Sequential(*(_fold_stem_block(b) for b in model.stem))
        _scale_input(self.stem, [1.0 / (255.0 * s) for s in std])
        self.stages = nn.ModuleList(
            nn.Sequential(*(FoldedBlock(m) if isinstance(m, QonvViTBlock) else m for m in stage.children()))
            for stage in model.backbone.stages
        )
        self.fusion = FoldedFusion(model.fusion, side)
        self.head = model.head
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Classify images; normalisation is inside."""
        nchw = image.float().permute(0, 3, 1, 2)
        x = self.stem(nchw - self.offset)
        low = self.stages[1](self.stages[0](x))
        logits = self.head(self.fusion(low, self.stages[2](low)))
        return logits, logits.softmax(dim=-1)


class FoldedBlock(nn.Module):
    """A QonvViT block without residual scales, foldable norms or running re-centring."""

    def __init__(self, block: QonvViTBlock) -> None:
        super().__init__()
        self.mix = _fold_norm_conv(block.mix)
        self.mix_out = _scaled(block.mix_out, block.res_scale1)
        self.mlp = _fold_norm_conv(block.mlp)
        self.mlp_out = _scaled(block.mlp_out, block.res_scale2)
        self.act = block.act
        self.excite = block.excite
        self.subtract_mean = block.recentre is None
        self.clamp_gate = block.clamp_gate
        if block.recentre is not None:
            assert self.mlp_out.bias is not None
            self.mlp_out.bias -= block.recentre.running_mean

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to the same shape."""
        x = (x + self.mix_out(self.act(self.mix(x)))).clamp(-CLAMP, CLAMP)
        x = (x + self.mlp_out(self.act(self.mlp(x)))).clamp(-CLAMP, CLAMP)
        x = self.excite(x)
        x = x.clamp(-CLAMP, CLAMP) if self.clamp_gate else x
        return x - x.mean(dim=(1, 2, 3), keepdim=True) if self.subtract_mean else x


class Attention(nn.Module):
    """Softmax attention whose keys and values are upsampled by a constant matrix."""

    upsample: Tensor

    def __init__(self, num_heads: int, side: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.register_buffer("upsample", bilinear_matrix(side // 2))

    def forward(self, query: Tensor, key_value: Tensor) -> Tensor:
        """Attend from ``[B, d, H, W]`` to ``[B, 2d, H/2, W/2]``; gives ``[B, d, H, W]``."""
        shape = query.shape
        channels = shape[1] // self.num_heads
        q = query.reshape(-1, self.num_heads, channels, shape[2] * shape[3])
        kv = key_value.reshape(-1, 2 * self.num_heads, channels, key_value.shape[2] * key_value.shape[3])
        k, v = (kv @ self.upsample).chunk(2, dim=1)
        weights = (q.mT @ k).softmax(dim=-1)
        return (v @ weights.mT).reshape(-1, shape[1], shape[2], shape[3])


class FoldedFusion(nn.Module):
    """FusionBlockV2 as three 1x1 convolutions around the attention.

    With ``l = Wl low`` and ``P`` the BatchNorm-scaled projection, gate, projection and the attention's output
    map are one map of ``[attended, low]``: ``[P Ga Wo | P Gl Wl]``.
    """

    def __init__(self, fusion: FusionBlockV2, side: int) -> None:
        super().__init__()
        dim = fusion.query.out_features
        scale = 1.0 / math.sqrt(dim // fusion.num_heads)
        low, high = _affine(fusion.low), _affine(fusion.high)
        query = _then(low, _affine(fusion.query))
        key, value = _then(high, _affine(fusion.key)), _then(high, _affine(fusion.value))
        self.query = _conv((query[0] * scale, query[1] * scale))
        self.key_value = _conv((torch.cat([key[0], value[0]]), torch.cat([key[1], value[1]])))
        self.attention = Attention(fusion.num_heads, side)

        gain, shift = _batchnorm_affine(fusion.norm)
        gate, gate_bias = _affine(fusion.gate)
        project = gain[:, None] * fusion.proj.weight.double().flatten(1)
        attended = _then(_affine(fusion.out), (project @ gate[:, :dim], project @ gate_bias + shift))
        direct = _then(low, (project @ gate[:, dim:], torch.zeros(dim, dtype=torch.float64)))
        self.out = _conv((torch.cat([attended[0], direct[0]], dim=1), attended[1] + direct[1]))
        self.act = fusion.act

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Fuse ``[B, C2, H, W]`` and ``[B, C3, H/2, W/2]`` into ``[B, d, H, W]``."""
        attended = self.attention(self.query(low), self.key_value(high))
        return self.act(self.out(torch.cat([attended, low], dim=1)))


def bilinear_matrix(side: int) -> Tensor:
    """Return the matrix ``[side^2, 4 side^2]`` that doubles a ``side x side`` map bilinearly."""
    basis = torch.eye(side * side).reshape(side * side, 1, side, side)
    return F.interpolate(basis, scale_factor=2, mode="bilinear", align_corners=False).flatten(1)


Affine = tuple[Tensor, Tensor]


def _affine(layer: nn.Conv2d | nn.Linear) -> Affine:
    weight = layer.weight.double().flatten(1)
    bias = torch.zeros(len(weight), dtype=torch.float64) if layer.bias is None else layer.bias.double()
    return weight, bias


def _then(first: Affine, second: Affine) -> Affine:
    return second[0] @ first[0], second[0] @ first[1] + second[1]


def _conv(affine: Affine) -> nn.Conv2d:
    weight, bias = affine
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1).requires_grad_(False)
    conv.weight.copy_(weight[:, :, None, None])
    assert conv.bias is not None
    conv.bias.copy_(bias)
    return conv


def _batchnorm_affine(norm: nn.BatchNorm2d) -> Affine:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    return gain, norm.bias.double() - norm.running_mean.double() * gain


def _with(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Copy a convolution with another weight and bias."""
    new = copy.deepcopy(conv)
    new.weight = nn.Parameter(weight.float(), requires_grad=False)
    new.bias = nn.Parameter(bias.float(), requires_grad=False)
    return new


def _scaled(conv: nn.Conv2d, scale: Tensor) -> nn.Conv2d:
    assert conv.bias is not None
    return _with(conv, conv.weight.double() * scale.double(), conv.bias.double() * scale.double())


def _fold_stem_block(block: nn.Module) -> nn.Sequential:
    assert isinstance(block, StemBlock)
    conv, norm, act = block[0], block[1], block[2]
    assert isinstance(norm, nn.BatchNorm2d)
    gain, shift = _batchnorm_affine(norm)
    last = conv[-1] if isinstance(conv, nn.Sequential) else conv
    assert isinstance(last, nn.Conv2d)
    folded = _with(last, last.weight.double() * gain[:, None, None, None], shift)
    return nn.Sequential(conv[0], folded, act) if isinstance(conv, nn.Sequential) else nn.Sequential(folded, act)


def _scale_input(stem: nn.Sequential, scale: Sequence[float]) -> None:
    first = stem[0][0]  # type: ignore[index]
    assert isinstance(first, nn.Conv2d)
    first.weight *= torch.tensor(scale).reshape(1, 3, 1, 1)


def _fold_norm_conv(module: nn.Module) -> nn.Module:
    if isinstance(module, FoldableNormConv):
        wide = copy.deepcopy(module).double()
        return _with(module.conv, *wide.folded(wide.running_mean, wide.running_var))
    assert isinstance(module, nn.Sequential)
    norm, conv = module[0], module[1]
    assert isinstance(conv, nn.Conv2d)
    if isinstance(norm, nn.BatchNorm2d) and conv.kernel_size == (1, 1):
        gain, shift = _batchnorm_affine(norm)
        weight = conv.weight.double()
        assert conv.bias is not None
        return _with(conv, weight * gain[None, :, None, None], weight.flatten(1) @ shift + conv.bias.double())
    return module  # LayerNorm, and a BatchNorm before zero padding, cannot be folded exactly
