"""Whatever a foreign file calls its tensors and nodes, also as we call ours: it is wrapped and quantized."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qdeploy.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from qdeploy.data.dataset import Split
from qdeploy.export import ExportConfig, export_onnx
from qdeploy.export.graph.names import name_nodes_apart
from qdeploy.export.int8.calibrate import calibrate
from qdeploy.export.int8.encodings import encoding_for
from qdeploy.export.int8.quantize import quantize
from qdeploy.export.sources.onnx_file import adopted
from tests.conftest import SHORT, MakeImages
from tests.ort_session import plain_session

NET = """
<ir_version: 9, opset_import: ["" : 17]>
net (float[N, 3, 16, 16] x) => (float[N, 2] y)
{
    a = Conv <kernel_shape = [3, 3], strides = [2, 2]> (x, w1)
    b = Relu (a)
    c = Conv <kernel_shape = [3, 3]> (b, w2)
    g = Greater (limit, zero)
    d = If <
        then_branch = yes () => (float[N, 8, 5, 5] t) { t = Sigmoid (c) },
        else_branch = no () => (float[N, 8, 5, 5] e) { e = Neg (c) }
    > (g)
    p = GlobalAveragePool (d)
    f = Flatten (p)
    y = Gemm (f, w3, b3)
}
"""
TENSORS = ("x", "a", "b", "c", "d", "p", "f", "y", "t", "e", "w1", "w2", "w3", "b3", "g", "limit", "zero")
OURS = (
    *("image", "logits", "probabilities", "qd_float", "qd_nchw", "qd_mean", "qd_centred", "qd_scale"),
    *("a", "a_quantized", "a_scale", "a_zero_point", "a_dequantized", "a_float", "a_gate", "image_scale"),
    *("logits_quantized", "logits_float", "logits_scale", "logits_dequantized", "model/Conv", "a:0", "a:0_scale"),
)
NODES = ("model/Cast", "model/Softmax", "model/Conv", "a/DQ", "a/Q", "", "logits", "logits/DQ")


def named(names: dict[str, str], node_name: Callable[[int], str]) -> onnx.ModelProto:
    """Return the net with other names for its tensors and nodes."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(NET)
    values = {
        "w1": rng.normal(0, 0.3, (8, 3, 3, 3)),
        "w2": rng.normal(0, 0.3, (8, 8, 3, 3)),
        "w3": rng.normal(0, 1, (8, 2)),
        "b3": rng.normal(0, 0.1, 2),
        "limit": np.asarray(1.0),
        "zero": np.asarray(0.0),
    }
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(v, np.float32), names[k]) for k, v in values.items()
    )
    graphs = [model.graph, *(a.g for n in model.graph.node for a in n.attribute if a.HasField("g"))]
    for graph in graphs:
        for i, node in enumerate(graph.node):
            node.name = node_name(i)
            node.input[:] = [names[n] for n in node.input]
            node.output[:] = [names[n] for n in node.output]
        for value in (*graph.input, *graph.output):
            value.name = names[value.name]
    onnx.checker.check_model(model)
    return model


def expected(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    values = ((pixels.astype(np.float32) / 255 - IMAGENET_MEAN) / IMAGENET_STD).transpose(0, 3, 1, 2)
    name = next(i.name for i in model.graph.input)
    found: np.ndarray = plain_session(model.SerializeToString()).run(None, {name: values.astype(np.float32)})[0]
    return found


@pytest.mark.parametrize("seed", range(25))
def test_any_names_can_be_wrapped_and_quantized(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path))
    rng = np.random.default_rng(seed)
    names = dict(zip(TENSORS, rng.permutation(OURS).tolist(), strict=False))
    nodes = rng.choice(NODES, 20).tolist()
    model = named(names, nodes.__getitem__)
    name_nodes_apart(model.graph)  # as reading a file does
    pixels = rng.integers(0, 256, (16, 16, 16, 3), np.uint8)
    graph = adopted(model, Preprocessing(size=16, mean=IMAGENET_MEAN, std=IMAGENET_STD), tmp_path / "theirs.onnx")
    found = plain_session(graph.SerializeToString()).run(["logits"], {"image": pixels})[0]
    assert np.abs(found - expected(model, pixels)).max() < 1e-4
    assert len({n.name for n in graph.graph.node}) == len(graph.graph.node)
    split = Split(pixels=pixels, labels=np.zeros(16, np.int64), hashes=tuple(map(str, range(16))))
    ranges = calibrate(graph, split, 0).ranges("minmax")
    for target in ("x86", "tensorrt"):
        int8 = quantize(graph, ranges, encoding_for(target))
        assert sum(n.op_type == "QuantizeLinear" for n in int8.graph.node) >= 3
        rounded = plain_session(int8.SerializeToString()).run(["logits"], {"image": pixels})[0]
        assert np.abs(rounded - found).max() < 0.2 * found.std()


@pytest.mark.parametrize(("image", "output"), [("image", "logits"), ("logits", "probabilities"), ("y_scale", "image")])
def test_a_file_with_our_names_is_exported(image: str, output: str, image_folder: MakeImages, tmp_path: Path) -> None:
    model = named({**{n: n for n in TENSORS}, "x": image, "y": output}, lambda i: "model/Conv")
    onnx.save(model, str(tmp_path / "theirs.onnx"))
    config = ExportConfig(int8=True, search=SHORT, calibration="minmax", allow_drop=True, allow_slower=True)
    report = export_onnx(tmp_path / "theirs.onnx", str(image_folder(count=12)), tmp_path / "out", config=config)
    assert [a.precision for a in report.artifacts] == ["fp32", "int8"]
    assert report.steps[0].parity.max_abs < 1e-4
