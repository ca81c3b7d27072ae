"""One small net for each operator, or form of one, that classifiers hold beside the usual."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from tests.foreign.build import CLASSES, Net


def _between(kind: str, *extra: Callable[[Net], str], opset: int = 17, **attributes: Any) -> onnx.ModelProto:
    """Return a net with an operator between two convolutions, which keeps 8 channels."""
    net = Net(len(kind), opset=opset, ir=10)
    x = net.node(kind, net.stem(), *(make(net) for make in extra), **attributes)
    net.head(net.conv(x, (8, 8), kernel=1))
    return net.model()


def _old(
    kind: str, *extra: Callable[[Net], str], opset: int = 9, outputs: int = 1, **attributes: Any
) -> onnx.ModelProto:
    """Return a net with an operator as an old opset has it; of several outputs the last comes first."""
    net = Net(len(kind), opset=opset, ir=4)
    x = net.conv(net.stem(), (8, 8), kernel=1)
    names = [net.new("out") for _ in range(outputs)]
    net.node(kind, x, *(make(net) for make in extra), outputs=names, **attributes)
    if kind == "Split":
        names = [net.node("Concat", *reversed(names), axis=1)]
    net.head(net.conv(names[0], (8, 8), kernel=1))
    return net.model()


def _conv(opset: int = 17, **attributes: Any) -> onnx.ModelProto:
    net = Net(1, opset=opset)
    net.head(net.node("Relu", net.conv(net.stem(), (8, 8), **attributes)))
    return net.model()


def _constant(*shape: int, low: float = 0.5, high: float = 2.0) -> Callable[[Net], str]:
    return lambda net: net.constant(net.rng.uniform(low, high, shape))


def _ints(*values: int) -> Callable[[Net], str]:
    return lambda net: net.integers(*values)


def _scales(factor: float) -> Callable[[Net], str]:
    return lambda net: net.constant([1.0, 1.0, factor, factor])


def _nothing(_: Net) -> str:
    return ""


def _attention(rank_3_weights: bool) -> onnx.ModelProto:
    """Return a block of attention over 25 tokens of 8 channels."""
    net = Net(2)
    tokens = net.node("Transpose", net.node("Reshape", net.stem(), net.integers(0, 8, 25)), perm=[0, 2, 1])
    normal = net.node("LayerNormalization", tokens, net.constant(np.ones(8)), net.constant(np.zeros(8)))
    q, k, v = (net.node("MatMul", normal, net.weight(*((1, 8, 8) if rank_3_weights else (8, 8)))) for _ in "qkv")
    scores = net.node("MatMul", q, net.node("Transpose", k, perm=[0, 2, 1]))
    weights = net.node("Softmax", net.node("Mul", scores, net.constant(8**-0.5)), axis=-1)
    mixed = net.node("Add", net.node("MatMul", weights, v), tokens)
    if rank_3_weights:
        mixed = net.node("Add", net.node("MatMul", mixed, net.weight(1, 8, 8)), net.weight(1, 1, 8))
    pooled = net.node("ReduceMean", mixed, axes=[1], keepdims=0)
    net.node("Gemm", pooled, net.weight(8, CLASSES, scale=1.0), net.bias(), end="y")
    return net.model()


def _recurrent(kind: str, gates: int) -> onnx.ModelProto:
    net = Net(3)
    rows = net.node("Transpose", net.node("Reshape", net.stem(), net.integers(0, 8, 25)), perm=[2, 0, 1])
    net.node(kind, rows, net.weight(1, 4 * gates, 8), net.weight(1, 4 * gates, 4), outputs=["", "last"], hidden_size=4)
    flat = net.node("Squeeze", "last", net.integers(0))
    net.node("Gemm", flat, net.weight(4, CLASSES, scale=1.0), net.bias(), end="y")
    return net.model()


def _typed(kind: TensorProto.DataType) -> onnx.ModelProto:
    """Return a net whose middle is of another type."""
    net = Net(4)
    x = net.node("Cast", net.stem(), to=kind)
    dtype = {TensorProto.DOUBLE: np.float64, TensorProto.FLOAT16: np.float16}[kind]
    x = net.node("Mul", x, net.constant(net.rng.uniform(0.5, 2, (1, 8, 1, 1)), dtype=dtype))
    net.head(net.conv(net.node("Cast", x, to=TensorProto.FLOAT), (8, 8), kernel=1))
    return net.model()


def _one_dimensional() -> onnx.ModelProto:
    net = Net(5)
    row = net.node("Reshape", net.stem(), net.integers(0, 8, 25))
    x = net.node("Relu", net.node("Conv", row, net.weight(8, 8, 3), net.weight(8)))
    net.head(x)
    return net.model()


def _vector() -> onnx.ModelProto:
    """MatMul with a vector: three of them, put together."""
    net = Net(6)
    pooled = net.pooled(net.stem())
    columns = [
        net.node("Unsqueeze", net.node("MatMul", pooled, net.weight(8, scale=1.0)), net.integers(1)) for _ in "abc"
    ]
    net.node("Concat", *columns, end="y", axis=1)
    return net.model()


def _shapes() -> onnx.ModelProto:
    """Reshape as torch's older exporter writes view(x.size(0), -1)."""
    net = Net(7)
    stem = net.stem()
    count = net.node("Gather", net.node("Shape", stem), net.constant(0, dtype=np.int64), axis=0)
    wide = net.node("Concat", net.node("Unsqueeze", count, net.integers(0)), net.integers(-1), axis=0)
    flat = net.node("Reshape", stem, wide)
    net.node("Gemm", flat, net.weight(200, CLASSES, scale=0.2), net.bias(), end="y")
    return net.model()


def _unused_outputs() -> onnx.ModelProto:
    net = Net(8)
    net.node("MaxPool", net.stem(), outputs=["p", "places"], kernel_shape=[2, 2])
    net.node("Split", "p", net.integers(2, 4, 2), outputs=["s1", "s2", "s3"], axis=1)
    x = net.node("Concat", "s2", "s1", "s1", axis=1)
    net.head(x)
    return net.model()


def _concat_of_one() -> onnx.ModelProto:
    net = Net(9)
    stem = net.stem()
    one = net.node("Concat", stem, axis=1)
    net.head(net.node("Concat", one, stem, axis=1), channels=16)
    return net.model()


def _hard_swish_block() -> onnx.ModelProto:
    """A block of MobileNetV3: depthwise, HardSwish, squeeze and excite."""
    net = Net(10)
    x = net.node("HardSwish", net.conv(net.stem(), (8, 8), group=8, pads=[1, 1, 1, 1]))
    gate = net.node("HardSigmoid", net.conv(net.node("GlobalAveragePool", x), (8, 8), kernel=1), alpha=1 / 6)
    net.head(net.node("Mul", x, gate))
    return net.model()


def _einsum() -> onnx.ModelProto:
    net = Net(11)
    net.node("Einsum", net.pooled(net.stem()), net.weight(8, CLASSES, scale=1.0), end="y", equation="nc,ck->nk")
    return net.model()


def _resized(opset: int, **attributes: Any) -> onnx.ModelProto:
    net = Net(12, opset=opset)
    scales = net.constant([1.0, 1.0, 2.0, 2.0])
    inputs = {17: ("", scales), 11: (net.constant([]), scales)}.get(opset, (scales,))
    net.head(net.conv(net.node("Resize" if opset >= 10 else "Upsample", net.stem(), *inputs, **attributes), (8, 8)))
    return net.model()


def _transposed_gemm() -> onnx.ModelProto:
    """Gemm that reads its input transposed."""
    net = Net(13)
    turned = net.node("Transpose", net.pooled(net.stem()), perm=[1, 0])
    net.node("Gemm", turned, net.weight(8, CLASSES, scale=1.0), net.bias(), end="y", transA=1)
    return net.model()


ACTIVATIONS = (
    "Sigmoid",
    "Tanh",
    "Elu",
    "Selu",
    "Softplus",
    "Softsign",
    "HardSwish",
    "HardSigmoid",
    "Celu",
    "LeakyRelu",
)
COARSE = ("Clip, lower only",)
"""Those whose values lie far from 0, which every range holds: INT8 has few levels for them."""
OPERATORS: dict[str, Callable[[], onnx.ModelProto]] = {
    **{kind: partial(_between, kind) for kind in (*ACTIVATIONS, "LeakyRelu", "ThresholdedRelu", "Erf", "Neg", "Abs")},
    "Mish": lambda: _between("Mish", opset=18),
    "Gelu": lambda: _between("Gelu", opset=20),
    "Gelu, tanh": lambda: _between("Gelu", opset=20, approximate="tanh"),
    "PRelu": lambda: _between("PRelu", _constant(8, 1, 1)),
    "Clip, upper only": lambda: _between("Clip", _nothing, _constant(high=1.0)),
    "Clip, lower only": lambda: _between("Clip", _constant(low=0.1, high=0.2)),
    "Max": lambda: _between("Max", _constant(1, 8, 1, 1)),
    "Pow": lambda: _between("Pow", _constant(low=1.5)),
    "InstanceNormalization": lambda: _between("InstanceNormalization", _constant(8), _constant(8)),
    "GroupNormalization": lambda: _between("GroupNormalization", _constant(8), _constant(8), opset=21, num_groups=2),
    "LRN": lambda: _between("LRN", size=3),
    "LpNormalization": lambda: _between("LpNormalization", axis=1),
    "MeanVarianceNormalization": lambda: _between("MeanVarianceNormalization", axes=[1, 2, 3]),
    "CumSum": lambda: _between("CumSum", _ints(1)),
    "Pad, reflect": lambda: _between("Pad", _ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"),
    "Slice, backwards": lambda: _between("Slice", _ints(-1), _ints(-100), _ints(2), _ints(-1)),
    "Gather": lambda: _between("Gather", _ints(7, 6, 5, 4, 3, 2, 1, 0), axis=1),
    "Tile": lambda: _between("Tile", _ints(1, 1, 2, 1)),
    "Mul by one number": lambda: _between("Mul", _constant()),
    "Add of channels": lambda: _between("Add", _constant(8, 1, 1)),
    "AveragePool": lambda: _between("AveragePool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "LpPool": lambda: _between("LpPool", kernel_shape=[2, 2]),
    "Conv, SAME_UPPER": lambda: _conv(auto_pad="SAME_UPPER"),
    "Conv, groups": lambda: _conv(group=4, pads=[1, 1, 1, 1]),
    "Conv, depthwise": lambda: _conv(group=8),
    "Conv, dilated": lambda: _conv(dilations=[2, 2]),
    "Conv, one axis": _one_dimensional,
    "ConvTranspose": lambda: _between("ConvTranspose", _constant(8, 8, 2, 2, low=-0.3, high=0.3), strides=[2, 2]),
    "Resize, nearest": lambda: _resized(17, mode="nearest"),
    "Resize, cubic": lambda: _resized(11, mode="cubic"),
    "Resize 10": lambda: _resized(10, mode="linear"),
    "Upsample": lambda: _resized(9, mode="nearest"),
    "attention": lambda: _attention(rank_3_weights=False),
    "MatMul, weights of three axes": lambda: _attention(rank_3_weights=True),
    "MatMul by a vector": _vector,
    "Gemm, input transposed": _transposed_gemm,
    "LSTM": lambda: _recurrent("LSTM", 4),
    "GRU": lambda: _recurrent("GRU", 3),
    "float64 inside": lambda: _typed(TensorProto.DOUBLE),
    "float16 inside": lambda: _typed(TensorProto.FLOAT16),
    "view": _shapes,
    "outputs that nobody reads": _unused_outputs,
    "Concat of one": _concat_of_one,
    "squeeze and excite": _hard_swish_block,
    "Einsum": _einsum,
}

_SIDES = [0, 0, 1, 1, 0, 0, 1, 1]
OLD: dict[str, Callable[[], onnx.ModelProto]] = {
    **{f"{k} over axis {a}": partial(_old, k, axis=a) for k in ("Softmax", "LogSoftmax") for a in (1, 2, 3)},
    **{f"Upsample, {m}": partial(_old, "Upsample", _scales(2.0), mode=m) for m in ("nearest", "linear")},
    "Resize, linear": partial(_old, "Resize", _scales(0.6), opset=10, mode="linear"),
    **{f"Pad, {m}": partial(_old, "Pad", mode=m, pads=_SIDES, value=0.5) for m in ("constant", "reflect", "edge")},
    "Clip from above": partial(_old, "Clip", max=0.3),
    "TopK": partial(_old, "TopK", k=3, axis=2, outputs=2),
    "Slice": partial(_old, "Slice", starts=[-3, 0], ends=[100, 2], axes=[2, 3]),
    "Split": partial(_old, "Split", axis=1, outputs=2),
    "Dropout": partial(_old, "Dropout", opset=7, ratio=0.5),
    **{k: partial(_old, k, axes=[2], keepdims=1) for k in ("ReduceSum", "ReduceL2", "ReduceLogSumExp")},
}
"""Operators whose form has changed since."""
CHANGED: dict[str, Callable[[], onnx.ModelProto]] = {
    "Hardmax": partial(_old, "Hardmax"),
    "Resize, nearest, to fewer": partial(_old, "Resize", _scales(0.6), opset=10, mode="nearest"),
}
"""Those that onnx's converter gives another meaning."""
