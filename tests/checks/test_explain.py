"""Maps of what a model file looks at, against gradients and hooks in torch, and against the graph run unoptimized."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from torch import Tensor, nn

from qdeploy.checks.explain import Explainer, explain, overlay
from qdeploy.checks.explain.draw import marked
from qdeploy.checks.explain.graph import Reader
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.errors import ArtifactError, ImageError, InputError
from qdeploy.core.onnx_bytes import with_outputs
from qdeploy.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from qdeploy.export.graph.inner_outputs import open_with_outputs
from qdeploy.export.graph.seal import sealed_bytes
from qdeploy.export.sources.trace import trace
from qdeploy.models.classifier import Classifier
from qdeploy.models.folding import deploy
from qdeploy.models.heads import TokenReducer
from qdeploy.models.operators import LowRankAttention, MultiHeadAttention, SeparableAttention, heads
from qdeploy.models.registry import Changes, create_model
from qdeploy.native.onnx_graph import Graph, Node
from tests.ort_session import plain_session
from tests.resealed import reseal

FP32, INT8 = SHIPPED / "model.fp32.onnx", SHIPPED / "model.int8.onnx"
BAG = Path(__file__).parents[2] / "examples" / "bag.png"
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
PIXELS = (torch.from_numpy(IMAGE).float() / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
NORMALISED = PIXELS.permute(2, 0, 1)[None]


def written(model: Classifier, folder: Path) -> Path:
    """Write a model as a file with the shipped one's card."""
    card = read_artifact(FP32).card
    shape = model.config
    card = replace(card, model=replace(card.model, family=shape.family, config=shape.to_dict()))
    path = folder / "model.fp32.onnx"
    path.write_bytes(sealed_bytes(trace(deploy(model, IMAGENET_MEAN, IMAGENET_STD), shape.input_size), card))
    return path


def network(name: str, changes: Changes = ()) -> Classifier:
    """Build a model whose maps have a shape, and whose values stay small enough that rounding does too."""
    torch.manual_seed(0)
    model = create_model(name, 10, changes=changes).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_var is not None
                module.running_var.fill_(0.3)
    return model


def grad_cam(model: Classifier, features: nn.Module, index: int) -> tuple[Any, float]:
    """Return Grad-CAM without its ReLU: features weighted by the summed gradients of the logit."""
    kept: list[Tensor] = []
    hook = features.register_forward_hook(lambda m, given, out: kept.append(out))
    logit = model(NORMALISED)[0, index]
    hook.remove()
    (gradient,) = torch.autograd.grad(logit, kept[0])
    return (gradient.sum(dim=(2, 3), keepdim=True) * kept[0]).sum(dim=1)[0].detach().numpy(), logit.item()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("nano-ar", "fusion"),
        ("mobilevit-pointwise-separable-v2", "head"),
        ("torchvision/resnet18", "network.layer4"),
        ("torchvision/mobilenet_v2", "network.features"),
        ("torchvision/squeezenet1_1", "network.classifier.2"),
    ],
)
def test_a_class_map_is_grad_cam(name: str, end: str, tmp_path: Path) -> None:
    model = network(name)
    explainer = Explainer(read_artifact(written(model, tmp_path)))
    for index in (0, 7):
        label = explainer.card.labels[index]
        expected, logit = grad_cam(model, model.get_submodule(end), index)
        found = explainer(IMAGE, label).class_map
        assert found is not None
        assert (found.label, found.index) == (label, index)
        assert expected.std() > 0.05 * np.abs(expected).max()
        assert np.allclose(found.values, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
        assert found.logit == pytest.approx(logit, rel=1e-4, abs=1e-6)
        assert found.remainder == pytest.approx(0, abs=1e-6 * np.abs(expected).max())


def test_an_int8_file_s_map_is_its_own_layer_on_its_own_features() -> None:
    before = INT8.read_bytes()
    found = Explainer(read_artifact(INT8))(BAG).class_map
    assert found is not None
    assert INT8.read_bytes() == before
    model = onnx.load(str(INT8))
    values = {i.name: numpy_helper.to_array(i).astype(np.float64) for i in model.graph.initializer}
    gemm = next(n for n in model.graph.node if n.op_type == "Gemm")
    weight = next(n for n in model.graph.node if gemm.input[1] in n.output)
    quantized, scale, zero = (values[name] for name in weight.input)
    assert not zero.any()
    mean = next(n for n in model.graph.node if n.op_type == "ReduceMean")
    pixels = read_artifact(INT8).card.preprocessing(BAG)[None]
    (features,) = open_with_outputs(model, [mean.input[0]]).run([mean.input[0]], {"image": pixels})
    expected = np.einsum("c,chw->hw", quantized[found.index] * scale[found.index], features[0])
    assert np.allclose(found.values, expected, atol=0.05 * np.abs(expected).max())  # fused kernels round elsewhere
    plain = plain_session(str(INT8)).run(["logits"], {"image": pixels})[0][0]
    assert plain.argmax() == found.index
    assert found.logit == pytest.approx(float(plain.max()), abs=0.05)
    assert 0 < abs(found.remainder) < 0.1
    (theirs,) = (e.class_map for e in next(explain([BAG], [FP32])))
    assert theirs is not None
    assert np.corrcoef(found.values.ravel(), theirs.values.ravel())[0, 1] > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("head", ["sota", "gap+sota"])
def test_picked_tokens_are_those_of_the_head(head: str, tmp_path: Path) -> None:
    model = network("nano-ar", (("head", head),))
    reducer = next(m for m in model.modules() if isinstance(m, TokenReducer))
    kept: list[Tensor] = []
    reducer.score.register_forward_hook(lambda m, given, out: kept.append(out[0, :, 0]))
    with torch.inference_mode():
        model(NORMALISED)
    found = Explainer(read_artifact(written(model, tmp_path)))(IMAGE)
    assert found.class_map is None
    assert found.tokens is not None
    best = kept[0].topk(reducer.keep).indices.tolist()
    assert found.tokens.side == 4
    assert [4 * row + column for row, column in found.tokens.picked] == best


def attended(module: nn.Module, x_PND: Tensor) -> Tensor:
    """Return how much each token ``[P, N]`` counts, by the module's own weights."""
    if isinstance(module, SeparableAttention):
        size = (module.project(x_PND) * x_PND).norm(dim=2)
        return size / size.mean(dim=1, keepdim=True)
    assert isinstance(module, (MultiHeadAttention, LowRankAttention))
    q, k, _ = (heads(part[None]) for part in module.qkv(x_PND).chunk(3, dim=-1))
    k = module.compress(k) if isinstance(module, LowRankAttention) else k
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)[0]
    return torch.stack([weights[p].sum(dim=(0, 1)) / len(weights[p]) for p in range(len(weights))])


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["mha", "lowrank", "separable"])
def test_attention_maps_are_those_of_the_layers(attention: str, tmp_path: Path) -> None:
    model = network(f"mobilevit-pointwise-{attention}-v2")
    kinds = (MultiHeadAttention, LowRankAttention, SeparableAttention)
    expected: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda m, given, out: expected.append(attended(m, given[0][0])))
        for module in model.modules()
        if isinstance(module, kinds)
    ]
    with torch.inference_mode():
        model(NORMALISED)
    for hook in hooks:  # else the copy that is traced has them, too
        hook.remove()
    found = Explainer(read_artifact(written(model, tmp_path)), attention=True)(IMAGE).attention
    assert [(a.layer, a.values.shape) for a in found] == [
        (layer, (side, side)) for layer, side in enumerate([8] * 2 + [4] * 4 + [2] * 3, 1)
    ]
    for share, each in zip(expected, found, strict=True):
        side = len(each.values)
        for row, column in itertools.product(range(side), range(side)):
            position, patch = 2 * (row % 2) + column % 2, side // 2 * (row // 2) + column // 2
            assert each.values[row, column] == pytest.approx(float(share[position, patch]), abs=1e-3)
    assert found[0].values.std() > 1e-3


def test_the_fusion_s_attention_is_shown_too() -> None:
    (plain,), (found,) = next(explain([BAG], [FP32])), next(explain([BAG], [FP32], attention=True))
    (seen,) = found.attention
    assert plain.attention == ()
    assert plain.class_map is not None
    assert plain.class_map.remainder == pytest.approx(0, abs=1e-5)
    assert seen.values.shape == (8, 8)
    assert seen.values.mean() == pytest.approx(1)
    assert seen.values.std() > 0.01


def test_outputs_are_added_without_the_onnx_library() -> None:
    data = FP32.read_bytes()
    model = onnx.load_from_string(with_outputs(data, ["mean", "x" * 300]))
    assert [o.name for o in model.graph.output] == ["logits", "probabilities", "mean", "x" * 300]
    del model.graph.output[2:]
    assert model == onnx.load_from_string(data)


def bent(folder: Path) -> Path:
    """Write the shipped model with an activation between its pooling and its linear layer."""
    model = onnx.load(str(FP32))
    place, gemm = next((i, n) for i, n in enumerate(model.graph.node) if n.op_type == "Gemm")
    model.graph.node.insert(place, onnx.helper.make_node("Relu", [gemm.input[0]], ["bent"]))
    gemm.input[0] = "bent"
    return reseal(FP32, folder / "bent.onnx", lambda card: None, model)


def test_an_end_that_adds_two_computed_paths_is_found_at_once_to_be_none() -> None:
    """The answer of a SOTA head is a sum; each of a hundred residual additions doubles the ways back to the image."""
    nodes = [Node("Relu", ("image",), ("x0",), {})]
    nodes += [Node("Add", (f"x{i}", f"x{i}"), (f"x{i + 1}",), {}) for i in range(100)]
    nodes.append(Node("Add", ("x100", "x99"), ("logits",), {}))
    assert Reader(Graph(nodes, {}, ["image"], ["logits"])).linear_end("logits") is None


def refused(make: Callable[[], object], words: str, kind: type[InputError] = InputError) -> None:
    with pytest.raises(kind, match=words):
        make()


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    path = bent(tmp_path)
    refused(lambda: explain([BAG], [path]), "nothing to show: it does not end in average pooling and a linear layer")
    (found,) = next(explain([BAG], [path], attention=True))
    assert found.class_map is None
    assert len(found.attention) == 1
    shown = Explainer(read_artifact(FP32))
    refused(lambda: shown(BAG, "Bags"), "the model has no label 'Bags' .did you mean 'Bag'")
    refused(lambda: shown(b"no image"), "not a readable JPEG", ImageError)
    refused(lambda: list(explain([BAG], [tmp_path / "nowhere.onnx"])), "cannot be read", ArtifactError)


def test_colours_by_hand() -> None:
    pixels = np.full((4, 4, 3), 100, np.uint8)
    values = np.zeros((4, 4))
    values[0, 0], values[3, 3] = 2.0, -1.0
    picture = np.asarray(overlay(pixels, values)).astype(int)
    assert picture.shape == (192, 192, 3)
    assert picture[0, 0].tolist() == [round(100 / 4 + 0.75 * c) for c in (214, 39, 40)]
    assert picture[191, 0].tolist() == [100, 100, 100]
    assert picture[191, 191].tolist() == [round(100 * 0.625 + 0.375 * c) for c in (31, 90, 180)]
    framed = np.asarray(marked(pixels, 2, [(0, 1)]))
    assert framed[0, 96].tolist() == [214, 39, 40]
    assert framed[48, 144].tolist() == [100, 100, 100]
    assert framed[48, 48].tolist() == [35, 35, 35]


def test_pictures_can_be_saved(tmp_path: Path) -> None:
    (found,) = next(explain([BAG], [FP32]))
    assert found.class_map is not None
    overlay(found.pixels, found.class_map.values).save(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as saved:
        assert saved.size == (192, 192)
