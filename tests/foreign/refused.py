"""What is refused: files that are quantized already, too new, too large, incomplete, or no graphs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from tests.foreign.build import CLASSES, Foreign, Net, body, info
from tests.foreign.fused import optimized
from tests.foreign.operators import CHANGED

QUANTIZED = "quantized already"


def _pair(where: str) -> onnx.ModelProto:
    """A Q/DQ pair in the graph, in a branch, or in a function."""
    net = Net(1)
    stem = net.stem()
    scale, zero = net.constant(0.05), net.constant(0, dtype=np.uint8)
    pair = [
        helper.make_node("QuantizeLinear", [stem, scale, zero], ["q"]),
        helper.make_node("DequantizeLinear", ["q", scale, zero], ["d"]),
    ]
    if where == "graph":
        net.nodes += pair
        last = "d"
    elif where == "branch":
        no = body([helper.make_node("Neg", [stem], ["e"])], [], [info("e", None, 8, 5, 5)])
        yes = body(pair, [], [info("d", None, 8, 5, 5)])
        sure = net.node("Greater", net.node("ReduceMax", stem, keepdims=0), net.constant(-1.0))
        last = net.node("If", sure, then_branch=yes, else_branch=no)
    else:
        pair = [
            helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        ]
        opsets = [helper.make_opsetid("", net.opset)]
        net.functions.append(helper.make_function("own", "Pair", ["a", "s", "z"], ["d"], pair, opsets))
        net.domains["own"] = 1
        last = net.node("Pair", stem, scale, zero, domain="own")
    net.head(last)
    return net.model()


def _weight_only() -> onnx.ModelProto:
    """Weights in integers, dequantized when they are read."""
    net = Net(2)
    stem = net.stem()
    integers = net.constant(net.rng.integers(-127, 128, (8, CLASSES)), dtype=np.int8)
    weight = net.node("DequantizeLinear", integers, net.constant(0.01), net.constant(0, dtype=np.int8))
    net.node("Gemm", net.pooled(stem), weight, net.bias(), end="y")
    return net.model()


def _dynamic(of_conv: bool) -> onnx.ModelProto:
    """What ONNX Runtime's dynamic quantizer makes."""
    net = Net(3)
    net.node("MatMul", net.pooled(net.stem()), net.weight(8, CLASSES, scale=1.0), end="y")
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(net.model(), str(before))
        quantize_dynamic(
            before, after, weight_type=QuantType.QUInt8, op_types_to_quantize=["Conv" if of_conv else "MatMul"]
        )
        return onnx.load(str(after))


def _integer_product(kind: str) -> onnx.ModelProto:
    """ConvInteger or MatMulInteger with nothing else around it."""
    net = Net(4)
    if kind == "ConvInteger":
        image = net.node("Cast", net.node("Clip", "x", net.constant(0.0), net.constant(1.0)), to=TensorProto.UINT8)
        weight = net.constant(net.rng.integers(-127, 128, (8, 3, 3, 3)), dtype=np.int8)
        x = net.node("Cast", net.node(kind, image, weight, strides=[2, 2]), to=TensorProto.FLOAT)
        net.head(x)
        return net.model()
    bytes_ = net.node("Cast", net.pooled(net.stem()), to=TensorProto.UINT8)
    weight = net.constant(net.rng.integers(-127, 128, (8, CLASSES)), dtype=np.int8)
    net.node("Cast", net.node(kind, bytes_, weight), end="y", to=TensorProto.FLOAT)
    return net.model()


def _microsoft(kind: str, *inputs: Callable[[Net], str], **attributes: Any) -> onnx.ModelProto:
    net = Net(5)
    net.domains["com.microsoft"] = 1
    pooled = net.pooled(net.stem())
    net.node(kind, pooled, *(make(net) for make in inputs), end="y", domain="com.microsoft", **attributes)
    return net.model(check=False)


def _integers(*shape: int) -> Callable[[Net], str]:
    return lambda net: net.constant(net.rng.integers(0, 255, shape), dtype=np.uint8)


def _scale(net: Net) -> str:
    return net.constant(0.02)


def _plain(opset: int = 17, ir: int = 9) -> onnx.ModelProto:
    net = Net(6, opset=opset, ir=ir)
    net.head(net.stem())
    return net.model(check=False)


def _too_large(outside: bool) -> onnx.ModelProto:
    """Weights of more than 2 GiB in a file that need not be there: their sizes are in the first."""
    net = Net(7)
    net.node("Gather", "table", net.constant(5, dtype=np.int64), end="row", axis=0)
    pooled = net.node("Add", net.pooled(net.stem()), "row")
    net.node("Gemm", pooled, net.weight(8, CLASSES), net.bias(), end="y")
    model = net.model(check=False)
    rows = 72_000_000
    table = TensorProto(name="table", data_type=1, dims=[rows, 8], data_location=TensorProto.EXTERNAL)
    entries = [("location", "big.data"), ("offset", "0"), ("length", str(rows * 32))]
    for key, value in entries if outside else entries[:1]:
        table.external_data.add(key=key, value=value)
    model.graph.initializer.append(table)
    return model


def _missing(location: str) -> onnx.ModelProto:
    model = _plain()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    return model


def _unknown(domain: str) -> onnx.ModelProto:
    net = Net(8)
    if domain:
        net.domains[domain] = 1
    net.head(net.node("NoSuchOperator", net.stem(), domain=domain))
    return net.model(check=False)


def _headless() -> onnx.ModelProto:
    model = _plain()
    del model.opset_import[:]
    return model


def _wide_conv() -> onnx.ModelProto:
    net = Net(9)
    net.head(net.node("Relu", net.conv(net.stem(32), (32, 32), pads=[1, 1, 1, 1])), channels=32)
    return net.model()


FORMS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    **{f"Q/DQ in a {w}": (partial(_pair, w), QUANTIZED) for w in ("graph", "branch", "function")},
    "weights in integers": (_weight_only, QUANTIZED),
    "dynamic MatMul": (lambda: _dynamic(of_conv=False), QUANTIZED),
    "dynamic Conv": (lambda: _dynamic(of_conv=True), QUANTIZED),
    **{k: (partial(_integer_product, k), QUANTIZED) for k in ("ConvInteger", "MatMulInteger")},
    "MatMulNBits": (
        lambda: _microsoft("MatMulNBits", _integers(3, 1, 4), _integers(3), K=8, N=3, bits=4, block_size=16),
        QUANTIZED,
    ),
    "DynamicQuantizeMatMul": (lambda: _microsoft("DynamicQuantizeMatMul", _integers(8, 3), _scale), QUANTIZED),
    "QGemm": (lambda: _microsoft("QGemm", _scale, _integers(), _integers(8, 3), _scale, _integers()), QUANTIZED),
    "QLinearAdd": (lambda: _microsoft("QLinearAdd", _scale, _integers()), QUANTIZED),
    "nchwc": (lambda: optimized(_wide_conv(), "ORT_ENABLE_ALL"), "optimized by ONNX Runtime for one kind of CPU"),
    "IR of the future": (lambda: _plain(ir=99), "IR version"),
    "opset of the future": (lambda: _plain(opset=99), "opset"),
    "no opset": (_headless, "opset"),
    "more than 2 GiB": (lambda: _too_large(outside=True), "GiB"),
    "more than 2 GiB, no length": (lambda: _too_large(outside=False), "GiB"),
    "second file missing": (lambda: _missing("weights.bin"), "another file"),
    "second file outside": (lambda: _missing("../weights.bin"), "another file"),
    "unknown operator": (lambda: _unknown(""), "NoSuchOperator"),
    **{f"old {k}": (make, "onnx's converter changes 'y'") for k, make in CHANGED.items()},
    "unknown domain": (lambda: _unknown("com.example"), "com.example"),
}


def refused_graphs() -> Iterator[Foreign]:
    """Yield graphs that cannot be exported."""
    for name, (make, says) in FORMS.items():
        yield Foreign(name=name, kind="refused", model=make(), expected="refused", says=says)
