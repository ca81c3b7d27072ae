"""Q/DQ graphs, node by node, and what ONNX Runtime computes with them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.quantization import QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

from qdeploy.core.errors import InputError
from qdeploy.core.machine import native_target
from qdeploy.core.metrics import sqnr_db
from qdeploy.data.catalog import load_dataset
from qdeploy.export.int8.calibrate import calibrate, choose_images
from qdeploy.export.int8.encodings import ENCODINGS, Encoding, encoding_for
from qdeploy.export.int8.quantize import GELU_SLOPE, int8_of_portable, quantize
from qdeploy.export.int8.ranges import Range
from qdeploy.export.sources.trace import trace
from qdeploy.models.folding import deploy
from qdeploy.models.registry import create_model
from qdeploy.runtime.engines.onnxruntime_binding import open_binding
from tests.foreign.legal import legal_graphs
from tests.ort_session import plain_session

TEXT = """
<ir_version: 9, opset_import: ["" : 20]>
net (uint8[batch, 6, 6, 3] image) => (float[batch, 4] logits)
{
    pixels = Cast <to = 1> (image)
    nchw = Transpose <perm = [0, 3, 1, 2]> (pixels)
    a = Conv <kernel_shape = [3, 3]> (nchw, w1, b1)
    g = Gelu (a)
    c = Conv <kernel_shape = [4, 4]> (g, w2, b2)
    logits = Flatten (c)
}
"""


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    graph = onnx.parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    for name, shape, size in (
        ("w1", (8, 3, 3, 3), 0.004),
        ("b1", (8,), 0.1),
        ("w2", (4, 8, 4, 4), 0.1),
        ("b2", (4,), 0.1),
    ):
        graph.graph.initializer.append(numpy_helper.from_array(rng.normal(0, size, shape).astype(np.float32), name))
    for node in graph.graph.node:
        node.name = f"net.{node.output[0]}/{node.op_type}"
    return onnx.shape_inference.infer_shapes(graph)


@pytest.fixture(scope="module")
def images() -> Any:
    return np.random.default_rng(1).integers(0, 256, (64, 6, 6, 3), np.uint8)


def run(model: onnx.ModelProto, images: Any, names: list[str] | None = None) -> list[Any]:
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for name in names or []:
        wide.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = plain_session(wide.SerializeToString())
    return session.run(["logits", *(names or [])], {"image": images})


@pytest.fixture(scope="module")
def ranges(model: onnx.ModelProto, images: Any) -> dict[str, Range]:
    names = ["pixels", "nchw", "a", "g", "c"]
    logits, *others = run(model, images, names)
    return {
        n: (min(float(v.min()), 0), float(v.max())) for n, v in zip(["logits", *names], [logits, *others], strict=True)
    }


def operators(model: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]


def shared_weights(model: onnx.ModelProto) -> int:
    """Return how many layers read the integers that a layer before them reads."""
    weights = {i.name for i in model.graph.initializer}
    ends = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in weights}
    layers = [n.input[1] for n in model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    read = [name for name in layers if name in ends]
    return len(read) - len(set(read))


@pytest.mark.parametrize("target", ENCODINGS)
def test_every_encoding_is_close_to_the_float_graph(
    target: str, model: onnx.ModelProto, images: Any, ranges: dict[str, Range]
) -> None:
    int8 = quantize(model, ranges, encoding_for(target))
    assert sqnr_db(run(model, images)[0], run(int8, images)[0]) > 25


def test_gelu_on_integers_is_x_times_a_sigmoid_of_slope_1_702(
    model: onnx.ModelProto, images: Any, ranges: dict[str, Range]
) -> None:
    int8 = quantize(model, ranges, encoding_for("x86"))
    assert "Gelu" not in operators(int8)
    assert operators(int8).count("Mul") == 1  # x times its gate: the slope is in a scale
    values = {i.name: numpy_helper.to_array(i) for i in int8.graph.initializer}
    makers = {o: n for n in int8.graph.node for o in n.output}
    sigmoid = next(n for n in int8.graph.node if n.op_type == "Sigmoid")
    steep = makers[sigmoid.input[0]]
    plain = next(
        n
        for n in int8.graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] == steep.input[0] and n is not steep
    )
    assert values[steep.input[1]] == pytest.approx(GELU_SLOPE * values[plain.input[1]])
    x = np.linspace(-8, 8, 4001)
    exact = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    assert np.abs(exact - x / (1 + np.exp(-GELU_SLOPE * x))).max() == pytest.approx(0.0203, abs=1e-3)


def test_gelu_stays_where_it_is_told_to_and_where_the_target_wants_it(
    model: onnx.ModelProto, ranges: dict[str, Range]
) -> None:
    assert "Gelu" in operators(quantize(model, ranges, encoding_for("x86"), ["net.g/Gelu"]))
    for target in ("openvino", "tensorrt", "arm", "portable"):
        assert "Gelu" in operators(quantize(model, ranges, encoding_for(target)))


def test_seven_bit_weights_cannot_overflow_sixteen_bits(model: onnx.ModelProto, ranges: dict[str, Range]) -> None:
    for target, most in (("x86", 127), ("x86-avx2", 64)):
        int8 = quantize(model, ranges, encoding_for(target))
        values = {i.name: numpy_helper.to_array(i) for i in int8.graph.initializer}
        found = max(np.abs(v.astype(int)).max() for v in values.values() if v.dtype == np.int8 and v.ndim == 4)
        assert most - 1 <= found <= most
    assert 2 * 255 * 64 < 2**15


def test_portable_is_bit_identical_to_its_rewriting(
    model: onnx.ModelProto, images: Any, ranges: dict[str, Range]
) -> None:
    portable = quantize(model, ranges, encoding_for("portable"))
    values = {i.name: numpy_helper.to_array(i) for i in portable.graph.initializer}
    points = {int(values[n.input[2]]) for n in portable.graph.node if n.op_type == "QuantizeLinear"}
    assert points == {128}
    rewritten = int8_of_portable(portable)
    values = {i.name: numpy_helper.to_array(i) for i in rewritten.graph.initializer}
    assert all(v.dtype != np.uint8 for v in values.values())
    assert not any(values[n.input[2]].any() for n in rewritten.graph.node if n.op_type == "QuantizeLinear")
    assert np.array_equal(run(portable, images)[0], run(rewritten, images)[0])


def test_unknown_targets_name_the_near_ones() -> None:
    with pytest.raises(InputError, match="no target 'x68' .did you mean 'x86'"):
        encoding_for("x68")


@pytest.mark.parametrize(
    ("machine", "flags", "target"),
    [
        ("x86_64", {"avx2", "avx512_vnni"}, "x86"),
        ("x86_64", {"avx2", "avx_vnni"}, "x86"),
        ("x86_64", {"avx2", "avx512f"}, "x86-avx2"),
        ("aarch64", {"asimd"}, "arm"),
        ("arm64", set(), "arm"),
    ],
)
def test_native_is_what_the_cpu_runs_best(
    machine: str, flags: set[str], target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qdeploy.core import machine as this

    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(this, "cpu_flags", lambda: frozenset(flags))
    assert native_target() == target


def onnxruntime_s_own(model: onnx.ModelProto, ranges: dict[str, Range], encoding: Encoding) -> onnx.ModelProto:
    """Quantize with ONNX Runtime's tool, which has no integer GELU."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    values = {n: TensorData(lowest=np.float32(low), highest=np.float32(high)) for n, (low, high) in ranges.items()}
    quantizer = QDQQuantizer(
        copy,
        True,
        encoding.seven_bit_weights,
        QuantType.QInt8,
        QuantType.QInt8 if encoding.signed else QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, values),
        [],
        [],
        list(encoding.operators),
        {
            "ActivationSymmetric": encoding.symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": encoding.quantized_bias,
        },
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nano-ar", "mobilevit-grouped-separable-v1"])
def test_graphs_compute_what_those_of_onnxruntime_s_tool_do(name: str) -> None:
    dataset = load_dataset()
    rules = dataset.preprocessing
    torch.manual_seed(0)
    graph = trace(deploy(create_model(name, 10).eval(), rules.mean, rules.std), 64)
    calibration = calibrate(graph, choose_images(dataset, 16, 0), 0)
    pixels = dataset.splits["val"].pixels[:8]
    x86 = replace(encoding_for("x86"), integer_gelu=False)
    ranges = calibration.ranges("minmax")
    ours, theirs = quantize(graph, ranges, x86), onnxruntime_s_own(graph, ranges, x86)
    assert np.array_equal(run(ours, pixels)[0], run(theirs, pixels)[0])
    for target in ("tensorrt", "portable"):  # what stays in float reads floats here: the same or more exact
        ranges = calibration.ranges("minmax", symmetric=True)
        encoding = encoding_for(target)
        ours, theirs = quantize(graph, ranges, encoding), onnxruntime_s_own(graph, ranges, encoding)
        again = ["DequantizeLinear"] * shared_weights(theirs)  # each layer has integers of its own
        assert sorted(operators(ours)) == sorted([*operators(theirs), *again])
        float_logits = run(graph, pixels)[0]
        found, reference = (sqnr_db(float_logits, run(m, pixels)[0]) for m in (ours, theirs))
        assert found > reference - 3


def test_a_bias_that_overflows_32_bits_makes_the_weight_s_scale_larger(
    model: onnx.ModelProto, images: Any, ranges: dict[str, Range]
) -> None:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if tensor.name == "w1":
            values[0] *= 1e-12
        if tensor.name == "b1":
            values[0] = 5.0
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    a, g, c, logits = run(copy, images, ["a", "g", "c"])[1:] + run(copy, images)
    wide = {
        **ranges,
        **{n: (float(v.min()), float(v.max())) for n, v in (("a", a), ("g", g), ("c", c), ("logits", logits))},
    }
    int8 = quantize(copy, wide, encoding_for("x86"))
    assert sqnr_db(logits, run(int8, images)[0]) > 25


def test_what_stays_in_float_reads_floats(model: onnx.ModelProto, ranges: dict[str, Range]) -> None:
    int8 = quantize(model, ranges, encoding_for("x86"), ["net.a/Conv", "net.g/Gelu"])
    nodes = {n.name: n for n in int8.graph.node}
    weights = {i.name for i in int8.graph.initializer}
    assert list(nodes["net.a/Conv"].input)[1:] == ["w1", "b1"]
    assert nodes["net.g/Gelu"].input[0] == "a"
    assert {"w1", "b1"} <= weights
    assert "w2" not in weights


def test_a_corrected_bias_is_used_where_the_layer_is_integer_and_only_there(
    model: onnx.ModelProto, images: Any, ranges: dict[str, Range]
) -> None:
    shifted = {"net.c/Conv": np.full(4, 7.0, np.float32)}
    plain = quantize(model, ranges, encoding_for("tensorrt"))
    other = quantize(model, ranges, encoding_for("tensorrt"), biases=shifted)
    assert not np.array_equal(run(plain, images)[0], run(other, images)[0])
    in_float = quantize(model, ranges, encoding_for("tensorrt"), ["net.c/Conv"], biases=shifted)
    assert np.array_equal(
        run(in_float, images)[0], run(quantize(model, ranges, encoding_for("tensorrt"), ["net.c/Conv"]), images)[0]
    )


@pytest.mark.parametrize("target", ["x86", "x86-avx2", "tensorrt", "portable"])
def test_layers_that_share_a_weight_have_integers_of_their_own(target: str) -> None:
    """One weight along both axes, and one weight and bias of two convolutions."""
    rng = np.random.default_rng(0)
    for name in ("shared: axes", "shared: layers"):
        model = next(g.model for g in legal_graphs() if g.name == name)
        ranges = {o: (-4.0 * (n.op_type != "Relu"), 4.0) for n in model.graph.node for o in n.output}
        int8 = quantize(model, ranges, encoding_for(target))
        ends = {n.output[0]: n for n in int8.graph.node if n.op_type == "DequantizeLinear"}
        layers = [n for n in int8.graph.node if n.op_type in ("Conv", "Gemm", "MatMul") and n.input[1] in ends]
        assert len(layers) == 3
        for place in (0, 2):
            read = [ends[n.input[1]].input[place] for n in layers]
            assert len(set(read)) == len(layers) == len(ends.keys() & {n.input[1] for n in layers})
        image = rng.normal(0, 1, (2, 3, 12, 12)).astype(np.float32)
        expected, found = (plain_session(m.SerializeToString(), 1).run(None, {"x": image})[0] for m in (model, int8))
        assert sqnr_db(expected, found) > 15
        open_binding(int8.SerializeToString(), target=target)
