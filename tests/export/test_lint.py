"""What lint says of a graph is what ONNX Runtime and TensorRT-RTX, which builds without a GPU, really do with it."""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from qdeploy.core.errors import InputError
from qdeploy.export.int8.encodings import ENCODINGS, RUNTIMES
from qdeploy.export.lint.find import UNKNOWN_TO_TENSORRT
from qdeploy.export.lint.report import LintReport, lint, lint_file
from qdeploy.export.lint.rules import RULES
from qdeploy.native.source import program_from

SHIPPED = Path(__file__).parents[2] / "qdeploy" / "shipped"
rng = np.random.default_rng(0)


def vector(*values: float, kind: type[np.generic] = np.float32) -> NDArray[Any]:
    """Eight numbers, repeating those given."""
    return np.resize(np.asarray(values), 8).astype(kind)


CONSTANTS: dict[str, Any] = {
    "s": np.float32(0.05), "z": np.int8(0), "z3": np.int8(3), "u0": np.uint8(0), "u9": np.uint8(128),
    "w": rng.integers(-64, 65, (8, 8, 1, 1)).astype(np.int8), "w8": np.full((8, 8, 1, 1), 100, np.int8),
    "wu": np.full((8, 8, 1, 1), 9, np.uint8), "wf": np.ones((8, 8, 1, 1), np.float32),
    "ws": vector(0.01), "wz": vector(0, kind=np.int8), "wz3": vector(3, kind=np.int8), "wzu": vector(0, kind=np.uint8),
    "b": vector(1, -1), "bs": vector(0.0005), "bi": vector(1, kind=np.int32), "bz": vector(0, kind=np.int32),
    "cs": vector(0.05, 0.04), "cz": vector(0, kind=np.int8), "cu": vector(127, 128, kind=np.uint8),
    "n8": np.int8(7), "c8": np.full((1, 8, 1, 1), 7, np.int8), "cf": vector(1, 2), "one": np.float32(1),
    "half": np.float32(0.5), "root": np.float32(1.4142135), "six": np.float32(6), "zero": np.float32(0),
    "s6": np.float32(6 / 255), "h": np.int16(0), "double": np.float64(2), "w16": np.ones((8, 8, 1, 1), np.float16),
    "shape": np.array([8, 64]), "g8": np.full((8, 8), 5, np.int8), "gs": np.float32(0.01),
}  # fmt: skip
IN = "q = QuantizeLinear(x, s, {z}) d = DequantizeLinear(q, s, {z}) "
OUT = " p = QuantizeLinear(t, s, {z}) y = DequantizeLinear(p, s, {z})"
W = "k = DequantizeLinear <axis = 0> (w, ws, wz) "
WHOLE = IN + W + "t = Conv(d, k, b)" + OUT
GELU = "a = Div(x, root) e = Erf(a) {o} m = Mul(x, v) y = Mul(m, half)"
CHANNELS = "q = QuantizeLinear <axis = 1> (x, cs, {z}) d = DequantizeLinear <axis = 1> (q, cs, {z}) "
INT8 = {"int8-activation", "int8-activation-openvino"}


def small(body: str, of: str = "float[1,8,8,8]", to: str = "float[A,B,C,D]", opset: int = 20, ir: int = 8) -> Any:
    """Make a graph from the nodes' text and the constants they name."""
    header = f'<ir_version: {ir}, opset_import: ["": {opset}, "com.microsoft": 1]>'
    model = onnx.parser.parse_model(f"{header} g ({of} x) => ({to} y) {{ {body} }}")
    used = {name for node in model.graph.node for name in node.input}
    made = {name for node in model.graph.node for name in node.output}
    for name in sorted(used & (set(CONSTANTS) - made)):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(CONSTANTS[name]), name))
    return model


GRAPHS: dict[str, tuple[Any, set[str]]] = {
    "float": (small("t = Conv(x, wf) y = Relu(t)"), set()),
    "symmetric": (small(WHOLE.format(z="z")), INT8),
    "portable": (small(WHOLE.format(z="u9")), {"activation-zero-point"}),
    "zero point 3": (small(WHOLE.format(z="z3")), {"activation-zero-point", *INT8}),
    "uint8, zero point 0": (small(WHOLE.format(z="u0")), {"uint8-zero"}),
    "no zero point": (small("q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)"), {"uint8-zero"}),
    "uint8 weights": (
        small(WHOLE.format(z="z").replace("(w, ws, wz)", "(wu, ws, wzu)")),
        {"uint8-constant", *INT8},
    ),
    "uint8 input": (small("y = DequantizeLinear(x, s, u0)", of="uint8[1,8,8,8]"), {"uint8-constant"}),
    "int8 input": (small("y = DequantizeLinear(x, s, z)", of="int8[1,8,8,8]"), INT8),
    "uint8 from float weights": (
        small(WHOLE.format(z="z").replace("(w, ws, wz)", "(r, ws, wzu)").replace("k =", "r = QuantizeLinear <axis = 0> (wf, ws, wzu) k =")),  # noqa: E501
        {"uint8-zero", *INT8},
    ),
    "reshaped before Q": (
        small(IN.format(z="u9") + W + "r = Conv(d, k, b) v = Reshape(r, shape) t = Transpose(v)" + OUT.format(z="u9")),
        {"activation-zero-point"},
    ),
    "reshaped without Q": (
        small(IN.format(z="u9") + W + "r = Conv(d, k, b) t = Reshape(r, shape) y = Neg(t)"),
        {"missing-output-quantizer", "activation-zero-point"},
    ),
    "int32 bias": (
        small(WHOLE.format(z="z").replace("t = Conv(d, k, b)", "f = DequantizeLinear <axis = 0> (bi, bs, bz) t = Conv(d, k, f)")),  # noqa: E501
        {"int32-bias", *INT8},
    ),
    "weight zero point": (small(WHOLE.format(z="z").replace("wz)", "wz3)")), {"weight-zero-point", *INT8}),
    "float weights": (
        small(WHOLE.format(z="z").replace("(w, ws, wz)", "(r, ws, wz)").replace("k =", "r = QuantizeLinear <axis = 0> (wf, ws, wz) k =")),  # noqa: E501
        {"eight-bit-weights", *INT8},
    ),
    "a number": (small(IN.format(z="z") + "c = DequantizeLinear(n8, s, z) y = Mul(d, c)"), {"integer-constant", *INT8}),
    "numbers": (small(IN.format(z="z") + "c = DequantizeLinear(c8, s, z) y = Mul(d, c)"), INT8),
    "shifted constant": (
        small("j = Transpose(c8) c = DequantizeLinear(j, s, z) y = Mul(x, c)"),
        {"integer-constant"},
    ),
    "quantized constant": (
        small(IN.format(z="z") + "i = QuantizeLinear(cf, s, z) c = DequantizeLinear(i, s, z) y = Mul(d, c)"),
        {"quantized-float-constant", *INT8},
    ),
    "Conv without output Q": (
        small(IN.format(z="z") + W + "y = Conv(d, k, b)"),
        {"missing-output-quantizer", *INT8},
    ),
    "Relu that the range holds": (
        small(IN.format(z="u0") + W + "r = Conv(d, k, b) t = Relu(r)" + OUT.format(z="u0")),
        {"uint8-zero"},
    ),
    "Relu that it does not": (
        small(IN.format(z="u9") + W + "r = Conv(d, k, b) t = Relu(r)" + OUT.format(z="u9")),
        {"missing-output-quantizer", "activation-zero-point"},
    ),
    "Clip that the range holds": (
        small(IN.format(z="u0") + W + "r = Conv(d, k, b) t = Clip(r, zero, six)" + OUT.format(z="u0").replace(" s,", " s6,")),  # noqa: E501
        {"uint8-zero"},
    ),
    "Clip that it does not": (
        small(IN.format(z="u0") + W + "r = Conv(d, k, b) t = Clip(r, zero, six)" + OUT.format(z="u0")),
        {"missing-output-quantizer", "uint8-zero"},
    ),
    "Gemm with float bias": (
        small("q = QuantizeLinear(x, s, u9) d = DequantizeLinear(q, s, u9) k = DequantizeLinear(g8, gs, z) y = Gemm(d, k, b)", "float[2,8]", "float[2,8]"),  # noqa: E501
        {"missing-output-quantizer", "activation-zero-point"},
    ),
    "Gemm without bias": (
        small("q = QuantizeLinear(x, s, u9) d = DequantizeLinear(q, s, u9) k = DequantizeLinear(g8, gs, z) y = Gemm(d, k)", "float[2,8]", "float[2,8]"),  # noqa: E501
        {"activation-zero-point"},
    ),
    "8 bits": (
        small(WHOLE.format(z="u9").replace("(w,", "(w8,")),
        {"eight-bit-weights", "activation-zero-point"},
    ),
    "uint8 per channel": (
        small(CHANNELS.format(z="cu") + W + "t = Conv(d, k)" + OUT.format(z="u9")),
        {"per-channel-activation", "activation-zero-point"},
    ),
    "int8 per channel": (
        small(CHANNELS.format(z="cz") + W + "t = Conv(d, k)" + OUT.format(z="z")),
        {"per-channel-int8-activation", *INT8},
    ),
    "opset 12": (small(IN.format(z="z") + "y = Relu(d)", opset=12), {"old-opset", *INT8}),
    "opset 12 per channel": (
        small(WHOLE.format(z="z"), opset=12),
        {"old-opset", "per-channel-below-opset-13", "onnxruntime-refuses", *INT8},
    ),
    "QLinearConv": (
        small("q = QuantizeLinear(x, s, z) i = QLinearConv(q, s, z, w, ws, wz, s, z) y = DequantizeLinear(i, s, z)"),
        {"integer-operators", *INT8},
    ),
    "QLinearAdd": (
        small("q = QuantizeLinear(x, s, u9) i = com.microsoft.QLinearAdd(q, s, u9, q, s, u9, s, u9) y = DequantizeLinear(i, s, u9)"),  # noqa: E501
        {"integer-operators", "contrib-integer-operators", "activation-zero-point"},
    ),
    "dynamic": (
        small("q, e, v = DynamicQuantizeLinear(x) i = ConvInteger(q, w, v) y = Cast <to = 1> (i)"),
        {"dynamic-quantization"},
    ),
    "uint8 Transpose": (small("t = Transpose(x) y = Cast <to = 1> (t)", of="uint8[1,8,8,8]"), {"uint8-arithmetic"}),
    "uint8 Cast": (small("t = Cast <to = 1> (x) y = Transpose(t)", of="uint8[1,8,8,8]"), set()),
    "Cast to uint8": (small("t = Cast <to = 2> (x) y = Cast <to = 1> (t)"), {"uint8-arithmetic"}),
    "GELU": (small(GELU.format(o="v = Add(e, one)")), set()),
    "split GELU": (
        small(GELU.format(o="o = Add(e, one) q = QuantizeLinear(o, s, z) v = DequantizeLinear(q, s, z)")),
        {"split-gelu", *INT8},
    ),
    "GELU behind DQ": (
        small(IN.format(z="z") + GELU.format(o="v = Add(e, one)").replace("x,", "d,")),
        {"split-gelu", *INT8},
    ),
    "fp16": (small("y = Conv(x, w16)", "float16[1,8,8,8]", "float16[1,8,8,8]"), {"fp16"}),
    "float64 inside": (small("t = Cast <to = 11> (x) v = Mul(t, double) y = Cast <to = 1> (v)"), {"float64"}),
    "float64 Conv": (
        small("t = Cast <to = 11> (x) k = Cast <to = 11> (wf) v = Conv(t, k) y = Cast <to = 1> (v)"),
        {"float64", "onnxruntime-refuses"},
    ),
    "16 bits": (
        small("q = QuantizeLinear(x, s, h) y = DequantizeLinear(q, s, h)", opset=21, ir=10),
        {"sixteen-bit", "sixteen-bit-openvino"},
    ),
    "Det": (small("y = Det(x)", to="float[1,8]"), {"unknown-operator"}),
    "com.microsoft": (small("y = com.microsoft.FastGelu(x)"), {"unknown-operator"}),
    "a future opset": (small("y = Relu(x)", opset=99), {"newer-than-onnxruntime"}),
}  # fmt: skip


def rules(report: LintReport) -> set[str]:
    return {f.rule for f in report.findings}


@pytest.mark.parametrize("name", GRAPHS)
def test_each_rule_and_its_clean_counterpart(name: str) -> None:
    model, expected = GRAPHS[name]
    assert rules(lint(model)) == expected | {"native-refuses"}  # none has an artifact's input and outputs


def test_every_rule_has_a_graph() -> None:
    seen = set().union(*(expected for _, expected in GRAPHS.values()))
    assert seen >= {r.id for r in RULES}


def test_the_page_lists_every_rule() -> None:
    rows = re.findall(
        r"^\| `([\w-]+)` \| (\w+) \| ([^|]+) \|", (SHIPPED.parents[1] / "docs" / "lint.md").read_text(), re.M
    )
    told = {name: (severity, tuple(runtimes.split(", "))) for name, severity, runtimes in rows}
    assert {r.id: (r.severity, r.runtimes) for r in RULES}.items() <= told.items()
    opened = {"newer-than-onnxruntime", "onnxruntime-refuses", "external-data", "larger-than-2-gib"}
    opened |= {"native-refuses", "float-layers"}
    assert set(told) == {r.id for r in RULES} | opened


def tensorrt_builds(model: onnx.ModelProto) -> bool:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed on this machine")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    if not trt.OnnxParser(network, logger).parse(model.SerializeToString()):
        return False
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    one = (1, *tuple(network.get_input(0).shape)[1:])
    if -1 in tuple(network.get_input(0).shape):
        profile.set_shape(network.get_input(0).name, one, one, one)
        config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config) is not None


def onnxruntime_operators(model: onnx.ModelProto, folder: Path) -> list[str] | None:
    """Open and run a graph: the operators that ONNX Runtime made of it, or None if it fails."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    kinds = {"float": np.float32, "uint8": np.uint8, "float16": np.float16, "int8": np.int8}
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        (source,) = session.get_inputs()
        shape = [n if isinstance(n, int) else 2 for n in source.shape]
        session.run(None, {source.name: np.ones(shape, kinds[source.type[7:-1]])})
    except Exception:  # its exceptions share no base class
        return None
    return [n.op_type for n in onnx.load(folder / "optimized.onnx").graph.node]


@pytest.mark.parametrize("name", GRAPHS)
def test_tensorrt_does_what_lint_says(name: str) -> None:
    model, _ = GRAPHS[name]
    assert tensorrt_builds(model) == (lint(model).support["tensorrt"] != "refused")


@pytest.mark.parametrize("name", GRAPHS)
def test_onnxruntime_does_what_lint_says(name: str, tmp_path: Path) -> None:
    model, expected = GRAPHS[name]
    operators = onnxruntime_operators(model, tmp_path)
    assert (operators is None) == (lint(model).support["x86"] == "refused")
    if platform.machine() != "x86_64" or operators is None:
        return
    layers = sum(n.op_type in ("Conv", "Gemm") for n in model.graph.node)
    slow = {"missing-output-quantizer", "per-channel-int8-activation"}
    if layers and any(n.op_type == "DequantizeLinear" for n in model.graph.node):
        left = {"Conv", "FusedConv", "Gemm"} & set(operators)
        assert bool(left) == bool(slow & expected)
    assert ("Erf" in operators) == ("split-gelu" in expected)
    if name == "fp16":
        assert "Cast" in operators


def test_tensorrt_reads_uint8_as_int8() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed on this machine")
    network = trt.Builder(logger := trt.Logger(trt.Logger.ERROR)).create_network(0)
    model, _ = GRAPHS["no zero point"]
    assert trt.OnnxParser(network, logger).parse(model.SerializeToString())
    made = [network.get_layer(i) for i in range(network.num_layers)]
    assert [m.get_output(0).dtype for m in made if m.type == trt.LayerType.QUANTIZE] == [trt.int8]


def test_unknown_operators_are_those_of_the_parser() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed on this machine")
    logger = trt.Logger(trt.Logger.ERROR)
    parser = trt.OnnxParser(trt.Builder(logger).create_network(0), logger)
    assert [name for name in sorted(UNKNOWN_TO_TENSORRT) if parser.supports_operator(name)] == []


class Images(CalibrationDataReader):  # type: ignore[misc]
    """Two batches of noise."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.batches: Iterator[Any] = iter([{"image": rng.integers(0, 256, (4, 64, 64, 3), np.uint8)}] * 2)

    def get_next(self) -> Any:
        return next(self.batches, None)


MATRIX = ["Conv", "Gemm", "MatMul"]
SYMMETRIC = {"ActivationSymmetric": True, "QuantizeBias": False}
U8: dict[str, Any] = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
STYLES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "ONNX Runtime's defaults": ({}, "slow", "wrong", "refused"),
    "u8s8": (U8, "ok", "wrong", "refused"),
    "u8s8, 7 bits": ({**U8, "reduce_range": True}, "ok", "ok", "refused"),
    "u8u8": ({**U8, "weight_type": QuantType.QUInt8}, "ok", "ok", "refused"),
    "symmetric, int32 bias": (
        {"op_types_to_quantize": MATRIX, "extra_options": {"ActivationSymmetric": True}}, "slow", "wrong", "refused",
    ),
    "symmetric, float bias": ({"op_types_to_quantize": MATRIX, "extra_options": SYMMETRIC}, "slow", "wrong", "ok"),
    "symmetric, float bias, all operators": ({"extra_options": SYMMETRIC}, "slow", "wrong", "refused"),
    "no output Q": (
        {"op_types_to_quantize": MATRIX, **U8, "extra_options": {"OpTypesToExcludeOutputQuantization": MATRIX}},
        "slow", "wrong", "refused",
    ),
    "symmetric, no output Q": (
        {"op_types_to_quantize": MATRIX, "extra_options": {**SYMMETRIC, "OpTypesToExcludeOutputQuantization": MATRIX}},
        "slow", "wrong", "ok",
    ),
    "QOperator": ({**U8, "quant_format": QuantFormat.QOperator}, "ok", "wrong", "refused"),
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_a_real_model_in_the_styles_of_the_world(style: str, tmp_path: Path) -> None:
    options, x86, avx2, tensorrt = STYLES[style]
    file = tmp_path / "model.onnx"
    source = shutil.copy(SHIPPED / "model.fp32.onnx", tmp_path)  # ONNX Runtime writes beside it
    quantize_static(source, file, Images(), **{"per_channel": True, **options})
    report = lint_file(file)
    assert report.quantized
    assert (report.support["x86"], report.support["x86-avx2"], report.support["tensorrt"]) == (x86, avx2, tensorrt)
    model = onnx.load(file)
    assert tensorrt_builds(model) == (tensorrt == "ok")
    operators = onnxruntime_operators(model, tmp_path)
    assert operators is not None
    if platform.machine() == "x86_64":
        assert bool({"Conv", "FusedConv"} & set(operators)) == (x86 == "slow")


def test_our_own_files() -> None:
    fp32 = lint_file(SHIPPED / "model.fp32.onnx")
    assert set(fp32.support.values()) == {"ok"}
    assert (fp32.opset, fp32.quantized, fp32.findings) == (20, False, ())
    int8 = lint_file(str(SHIPPED / "model.int8.onnx"))
    assert list(int8.support) == list(RUNTIMES)
    assert int8.support["x86"] == int8.support["openvino"] == "ok"
    assert int8.support["tensorrt"] == "refused"
    first = int8.findings_for("tensorrt")[0]
    assert first.severity == "refused"
    assert first.places > 10
    assert first.first in {n.name for n in onnx.load(SHIPPED / "model.int8.onnx").graph.node}


def test_a_microcontroller_takes_what_is_compiled() -> None:
    assert lint_file(SHIPPED / "model.int8.onnx").support["cortex-m"] == "ok"
    model = onnx.load(SHIPPED / "model.int8.onnx")
    (note,) = lint(model).findings_for("cortex-m")
    assert (note.rule, note.severity) == ("float-layers", "note")
    program = program_from(model.SerializeToString(), 64)
    layers = [op for op in program.ops if op.kind in ("conv", "linear", "matmul")]
    assert note.places == sum(not op.inputs[0].integer for op in layers) > 0
    last = model.graph.node[-1]
    last.output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Erf", ["before"], ["beyond"]))
    model.graph.node.append(onnx.helper.make_node("Det", ["beyond"], ["probabilities"]))
    report = lint(model)
    assert report.support["cortex-m"] == "refused"
    (refused,) = report.findings_for("cortex-m")
    assert "Erf" in refused.why or "Det" in refused.why


def test_a_window_that_no_kernel_takes_is_refused_for_a_microcontroller() -> None:
    """The graph can be read; what it comes to in C is refused only where it is laid out."""
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    g (uint8[N, 64, 64, 3] image) => (float[N, 3] logits, float[N, 3] probabilities) {
      floats = Cast <to = 1> (image)
      planes = Transpose <perm = [0, 3, 1, 2]> (floats)
      seen = Conv (planes, w)
      mean = GlobalAveragePool (seen)
      logits = Flatten (mean)
      probabilities = Softmax (logits)
    }"""
    for rows, support in ((16, "ok"), (17, "refused")):
        model = onnx.parser.parse_model(text)
        weights = np.full((3, 3, rows, 3), 0.01, np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
        assert lint(model).support["cortex-m"] == support
    assert f"a window of {rows} rows" in lint(model).findings_for("cortex-m")[0].why


def test_every_target_is_listed_everywhere() -> None:
    docs = SHIPPED.parents[1] / "docs"
    for page, option, names in (("export", "--target", ENCODINGS), ("lint", "--for", RUNTIMES)):
        table = (docs / f"{page}.md").read_text().partition(f"| `{option}` |")[2].partition("\n\n")[0]
        assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.M)) == set(names)
    assert set(ENCODINGS) - set(RUNTIMES) == {"portable"}
    assert set(lint_file(SHIPPED / "model.fp32.onnx").support) == set(RUNTIMES)


def test_weights_in_another_file(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    onnx.save(onnx.load(SHIPPED / "model.fp32.onnx"), file, save_as_external_data=True, location="weights")
    report = lint_file(file)
    assert rules(report) == {"external-data"}
    assert set(report.support.values()) == {"ok"}
    assert rules(lint(onnx.load(file, load_external_data=False))) == {"external-data"}
    (tmp_path / "weights").unlink()
    with pytest.raises(InputError, match="keeps weights in another file .* put that file beside it"):
        lint_file(file)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "is empty"), (b"some text\n", "is no ONNX file"), (bytes(range(256)), "is no ONNX file")],
)
def test_what_is_no_onnx_is_one_line(content: bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"model.onnx {says}") as caught:
        lint_file(file)
    assert "\n" not in str(caught.value)


def test_missing_file_folder_and_empty_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; give an ONNX file"):
        lint_file(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="is a folder; give an ONNX file"):
        lint_file(tmp_path)
    with pytest.raises(InputError, match="names no opset"):
        lint(onnx.ModelProto())
    with pytest.raises(InputError, match="has no scale"):
        lint(small("q = QuantizeLinear(x) y = Cast <to = 1> (q)"))


def test_functions_and_inner_graphs_are_read() -> None:
    text = """<ir_version: 8, opset_import: ["": 20, "mine": 1]>
    g (float[1,8] x, bool c) => (float[1,8] y) { t = mine.f(x) y = If (c) <
        then_branch = a () => (float[1,8] p) { p = Det(t) }, else_branch = b () => (float[1,8] r) { r = Relu(t) }> }
    <domain: "mine", opset_import: ["": 20]> f (i) => (o) { o = Unique(i) }"""
    report = lint(onnx.parser.parse_model(text))
    (finding,) = [f for f in report.findings if f.rule == "unknown-operator"]
    assert finding.places == 2
