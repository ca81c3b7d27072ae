"""Files that ONNX Runtime's optimizer has saved, and its fused operators one by one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from tests.foreign.build import CLASSES, Foreign, Net
from tests.foreign.operators import OPERATORS

MICROSOFT: dict[str, Any] = {"domain": "com.microsoft"}


def optimized(model: onnx.ModelProto, level: str) -> onnx.ModelProto:
    """Return what ONNX Runtime saves of a graph."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 4
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def _net(seed: int = 0) -> Net:
    net = Net(seed)
    net.domains["com.microsoft"] = 1
    return net


def _conv(kind: str, parameters: tuple[float, ...] = (), added: bool = False) -> onnx.ModelProto:
    net = _net(1)
    stem = net.stem()
    inputs = [stem, net.weight(8, 8, 3, 3), net.weight(8), *([net.conv(stem, (8, 8))] if added else [])]
    given: dict[str, Any] = {"activation_params": list(parameters)} if parameters else {}
    net.head(net.node("FusedConv", *inputs, activation=kind, kernel_shape=[3, 3], **given, **MICROSOFT))
    return net.model()


def _gemm(kind: str, bias: tuple[int, ...] = (CLASSES,), **attributes: Any) -> onnx.ModelProto:
    net = _net(2)
    weight = net.weight(CLASSES, 8, scale=1.0) if attributes.get("transB") else net.weight(8, CLASSES, scale=1.0)
    pooled = net.pooled(net.stem())
    net.node("FusedGemm", pooled, weight, net.weight(*bias), end="y", activation=kind, **attributes, **MICROSOFT)
    return net.model()


def _matmul(**attributes: Any) -> onnx.ModelProto:
    """Return q k of 25 tokens, by a product whose operands may be transposed."""
    net = _net(3)
    tokens = net.node("Reshape", net.stem(), net.integers(0, 8, 25))
    q = net.node("MatMul", net.node("Transpose", tokens, perm=[0, 2, 1]), net.weight(8, 8))
    q = net.node("Transpose", q, perm=[0, 2, 1]) if attributes.get("transA") else q
    k = net.node("Transpose", tokens, perm=[0, 2, 1]) if attributes.get("transB") else tokens
    product = net.node("FusedMatMul", q, k, **attributes, **MICROSOFT)
    net.node("Gemm", net.node("ReduceMean", product, axes=[1], keepdims=0), net.weight(25, CLASSES), end="y")
    return net.model()


def _matmul_by_weight() -> onnx.ModelProto:
    net = _net(4)
    pooled = net.pooled(net.stem())
    net.node("FusedMatMul", pooled, net.weight(CLASSES, 8, scale=1.0), end="y", transB=1, alpha=2.0, **MICROSOFT)
    return net.model()


def _curve(kind: str, bias: bool = False, **attributes: Any) -> onnx.ModelProto:
    net = _net(5)
    tokens = net.node("Transpose", net.conv("x", (3, 8), strides=[2, 2]), perm=[0, 2, 3, 1])
    curved = net.node(kind, tokens, *([net.weight(8)] if bias else []), **attributes, **MICROSOFT)
    mixed = net.node("MatMul", curved, net.weight(8, 8))
    net.head(net.node("Transpose", mixed, perm=[0, 3, 1, 2]))
    return net.model()


def _skip(beta: bool, bias: bool, total: bool) -> onnx.ModelProto:
    net = _net(6)
    tokens = net.node("Transpose", net.node("Reshape", net.stem(), net.integers(0, 8, 25)), perm=[0, 2, 1])
    other = net.node("MatMul", tokens, net.weight(8, 8))
    inputs = [tokens, other, net.weight(8, scale=1.0), net.weight(8) if beta else "", net.weight(8) if bias else ""]
    outputs = ["n", *(["", "", "s"] if total else [])]
    while not inputs[-1]:
        inputs.pop()
    net.node("SkipLayerNormalization", *inputs, outputs=outputs, epsilon=1e-5, **MICROSOFT)
    mixed = net.node("MatMul", "n", net.weight(8, 8))
    mixed = net.node("Add", mixed, "s") if total else mixed
    pooled = net.node("ReduceMean", mixed, axes=[1], keepdims=0)
    net.node("Gemm", pooled, net.weight(8, CLASSES, scale=1.0), net.bias(), end="y")
    return net.model()


def _kept() -> onnx.ModelProto:
    """An operator of ONNX Runtime that stays as it is: attention of several heads."""
    net = _net(7)
    tokens = net.node("Transpose", net.node("Reshape", net.stem(), net.integers(0, 8, 25)), perm=[0, 2, 1])
    q, k, v = (net.node("MatMul", tokens, net.weight(8, 8)) for _ in "qkv")
    mixed = net.node("MultiHeadAttention", q, k, v, num_heads=2, **MICROSOFT)
    pooled = net.node("ReduceMean", net.node("MatMul", mixed, net.weight(8, 8)), axes=[1], keepdims=0)
    net.node("Gemm", pooled, net.weight(8, CLASSES, scale=1.0), net.bias(), end="y")
    return net.model()


def _gelu_of_erf(opset: int) -> onnx.ModelProto:
    """Two blocks with GELU in its pieces, which the optimizer fuses."""
    net = Net(8, opset=opset)
    x = net.conv("x", (3, 8), strides=[2, 2])
    for _ in range(2):
        x = net.node("Transpose", x, perm=[0, 2, 3, 1])
        x = net.node("Add", net.node("MatMul", x, net.weight(8, 8)), net.weight(8))
        erf = net.node("Erf", net.node("Div", x, net.constant(2**0.5)))
        x = net.node("Mul", net.node("Mul", x, net.node("Add", erf, net.constant(1.0))), net.constant(0.5))
        x = net.node("Transpose", x, perm=[0, 3, 1, 2])
    net.head(x)
    return net.model()


def _residual() -> onnx.ModelProto:
    """A residual block with BatchNormalization, which the optimizer makes FusedConv of."""
    net = Net(9)
    stem = net.stem(16)
    x = net.node("Relu", net.conv(stem, (16, 16), pads=[1, 1, 1, 1]))
    x = net.node("Relu", net.node("Add", net.conv(x, (16, 16), pads=[1, 1, 1, 1]), stem))
    x = net.node("Clip", net.conv(x, (16, 16)), net.constant(0.0), net.constant(6.0))
    net.head(net.node("Sigmoid", x), channels=16)
    return net.model()


SOURCES: dict[str, Callable[[], onnx.ModelProto]] = {
    "residual": _residual,
    "Gelu 13": lambda: _gelu_of_erf(13),
    "Gelu 17": lambda: _gelu_of_erf(17),
    **{n: OPERATORS[n] for n in ("attention", "squeeze and excite", "LeakyRelu", "Conv, groups", "HardSwish", "view")},
}
FORMS: dict[str, Callable[[], onnx.ModelProto]] = {
    **{f"FusedConv {k}": partial(_conv, k) for k in ("Relu", "Sigmoid", "Tanh")},
    "FusedConv LeakyRelu": lambda: _conv("LeakyRelu", (0.1,)),
    "FusedConv Clip": lambda: _conv("Clip", (0.0, 6.0)),
    "FusedConv HardSigmoid": lambda: _conv("HardSigmoid", (0.2, 0.5)),
    "FusedConv of a sum": lambda: _conv("Relu", added=True),
    "FusedGemm Relu": lambda: _gemm("Relu"),
    "FusedGemm LeakyRelu": lambda: _gemm("LeakyRelu", activation_alpha=0.1),
    "FusedGemm, factors": lambda: _gemm("LeakyRelu", (1, CLASSES), alpha=0.5, beta=2.0, transB=1, activation_alpha=0.2),
    "FusedMatMul": lambda: _matmul(alpha=0.5),
    "FusedMatMul, A": lambda: _matmul(alpha=0.5, transA=1),
    "FusedMatMul, B": lambda: _matmul(transB=1),
    "FusedMatMul by a weight": _matmul_by_weight,
    "Gelu": lambda: _curve("Gelu"),
    "BiasGelu": lambda: _curve("BiasGelu", bias=True),
    "FastGelu": lambda: _curve("FastGelu"),
    "FastGelu with a bias": lambda: _curve("FastGelu", bias=True),
    "QuickGelu": lambda: _curve("QuickGelu", alpha=1.5),
    **{
        f"SkipLayerNormalization {b}{c}{t}": partial(_skip, b, c, t)
        for b, c, t in ((True, True, True), (True, False, False), (False, False, True))
    },
    "MultiHeadAttention": _kept,
}


def fused_graphs() -> Iterator[Foreign]:
    """Yield graphs with operators of ONNX Runtime's own."""
    for name, make in SOURCES.items():
        for level in ("ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED"):
            model = optimized(make(), level)
            yield Foreign(name=f"{name}, {level}", kind="fused", model=model, least_db=20.0)
    for name, make in FORMS.items():
        yield Foreign(name=name, kind="fused", model=make(), least_db=20.0)
