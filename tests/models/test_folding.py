from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qdeploy.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from qdeploy.models.classifier import Classifier
from qdeploy.models.folding import bilinear_matrix, deploy
from qdeploy.models.layers import FoldableNormConv
from qdeploy.models.qonstraint import QonvViTBlock, Recentre
from qdeploy.models.registry import QONSTRAINTS, Changes, create_model


def with_lived_in_norms(model: Classifier) -> Classifier:
    """Give every norm, bias and gate values as after training, so that no fold is trivially right."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name == "running_mean":
                buffer.copy_(torch.rand(buffer.shape, generator=generator) * 0.5 - 0.25)
            elif name == "running_var":
                buffer.copy_(torch.rand(buffer.shape, generator=generator) * 0.5 + 0.75)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() <= 1 or parameter.shape[0] == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def normalised(image: Tensor) -> Tensor:
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return ((image.float() / 255 - mean) / std).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, ()) for name in (*QONSTRAINTS, "mobilevit-grouped-lowrank-v1")),
        ("nano", (("head", "gap+sota"),)),
        ("mobilevit-grouped-lowrank-v1", (("groups", "4"), ("mixing", "shuffle"))),
    ],
)
def test_folding_is_exact(name: str, changes: Changes) -> None:
    torch.manual_seed(0)
    model = with_lived_in_norms(create_model(name, 10, changes=changes))
    image = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = model(normalised(image))
        logits, probabilities = deploy(model, IMAGENET_MEAN, IMAGENET_STD)(image)
    assert expected.std() > 0.01
    assert (logits - expected).abs().max() <= 1e-5
    assert torch.allclose(probabilities.sum(1), torch.ones(2))


@pytest.mark.parametrize("recentre", ["sample", "running"])
def test_folding_keeps_the_clamp_behind_the_gate(recentre: Recentre) -> None:
    torch.manual_seed(0)
    model = with_lived_in_norms(replace(QONSTRAINTS["nano"], clamps="throughout", recentre=recentre).build())
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, QonvViTBlock):  # a loud stream and open gates
                module.mlp_out.weight.mul_(20)
                module.excite.fc2.bias.fill_(5.0)  # type: ignore[union-attr]
    image = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        logits, _ = deploy(model, IMAGENET_MEAN, IMAGENET_STD)(image)
        assert (logits - model(normalised(image))).abs().max() <= 2e-3


def test_folding_leaves_the_model_as_it_was() -> None:
    model = create_model("nano", 4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    deploy(model, IMAGENET_MEAN, IMAGENET_STD)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_foldable_norm_is_batchnorm_whose_border_sees_its_image_of_zero() -> None:
    torch.manual_seed(0)
    layer = FoldableNormConv(torch.nn.Conv2d(5, 7, 3, padding=1)).train()
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5)
        layer.bias.uniform_(-1, 1)
    x = torch.randn(4, 5, 6, 6)
    norm = torch.nn.BatchNorm2d(5).train()
    norm.load_state_dict({"weight": layer.weight, "bias": layer.bias}, strict=False)
    y = norm(x)
    at_zero = layer.bias - x.mean((0, 2, 3)) * layer.weight / (x.var((0, 2, 3), unbiased=False) + 1e-5).sqrt()
    padded = at_zero[None, :, None, None].expand(4, 5, 8, 8).clone()
    padded[:, :, 1:-1, 1:-1] = y
    expected = F.conv2d(padded, layer.conv.weight, layer.conv.bias)
    assert torch.allclose(layer(x), expected, atol=1e-5)
    for own, theirs in ((layer.running_mean, norm.running_mean), (layer.running_var, norm.running_var)):
        assert theirs is not None
        assert torch.allclose(own, theirs, atol=1e-6)


def test_the_upsampling_matrix_is_bilinear_interpolation() -> None:
    x = torch.randn(2, 3, 4, 4)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.allclose((x.flatten(2) @ bilinear_matrix(4)).unflatten(2, (8, 8)), expected, atol=1e-6)
