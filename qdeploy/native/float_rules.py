"""Rules for nodes on floats, and for a softmax between codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.native.functions import function_of
from qdeploy.native.geometry import as_image, as_line, conv_geometry
from qdeploy.native.integer_rules import mean_geometry
from qdeploy.native.ir import Tensor
from qdeploy.native.lowering import Constant, Lowering, Places, UnsupportedError, Value, View, require_size
from qdeploy.native.onnx_graph import Node

Array = NDArray[Any]
POWER_ONE = 1 << 20
"""The whole number that stands for 1 among the powers of a softmax on codes."""
LONGEST_SOFTMAX = 2047
"""Values whose powers fit into a sum of 32 bits."""


def _float_constant(low: Lowering, node: Node, i: int, default: Array | None = None) -> Array:
    if len(node.inputs) <= i or not node.inputs[i]:
        if default is None:
            raise UnsupportedError(node.kind, f"its input {i} is missing")
        return default
    return low.constant(node.inputs[i]).values.astype(np.float32)


def _bias(low: Lowering, node: Node, outputs: int) -> Array:
    """Return the bias; a negative zero becomes a positive one, so that adding zeros changes nothing."""
    given = _float_constant(low, node, 2, np.zeros(outputs, np.float32)).reshape(-1) + np.float32(0)
    return np.broadcast_to(given, (outputs,)).astype(np.float32)


def _conv(low: Lowering, node: Node) -> Value:
    source, weight = low.float_tensor(node.inputs[0]), _float_constant(low, node, 1)
    geometry, shape = conv_geometry(node, source.shape, weight.shape)
    terms = {
        "weight": weight.reshape(*weight.shape[:2], -1, weight.shape[-1]),
        "bias": _bias(low, node, weight.shape[0]),
    }
    if len(source.shape) == 4:
        return low.emit("conv", [source], Tensor(node.outputs[0], shape), **terms, **geometry)
    image = Tensor(f"{node.outputs[0]}/image", shape)
    low.emit("conv", [as_image(low, source)], image, **terms, **geometry)
    return as_line(low, image, Tensor(node.outputs[0], ()))


def _batchnorm(low: Lowering, node: Node) -> Value:
    """A BatchNorm that is not behind a convolution: a product and a sum for each channel."""
    source = low.float_tensor(node.inputs[0])
    if len(source.shape) < 2:
        raise UnsupportedError(node.kind, f"of {list(source.shape)}")
    scale, bias, mean, variance = (_float_constant(low, node, i) for i in range(1, 5))
    factor = scale / np.sqrt(variance + np.float32(node.attributes.get("epsilon", 1e-5)))
    shape = (-1, *[1] * (len(source.shape) - 2))
    terms = [(factor, "mul", f"{node.outputs[0]}/scaled"), (bias - mean * factor, "add", node.outputs[0])]
    for values, kind, name in terms:
        constant = Tensor(f"{name}/{kind}", values.reshape(shape).shape, data=values.reshape(shape))
        source = low.emit(kind, [source, constant], Tensor(name, source.shape))
    return source


def _linear(low: Lowering, node: Node, source: Tensor, matrix: Array) -> Tensor:
    bias, shape = _bias(low, node, matrix.shape[0]), (*source.shape[:-1], matrix.shape[0])
    weight = np.ascontiguousarray(matrix)
    return low.emit("linear", [source], Tensor(node.outputs[0], shape), weight=weight, bias=bias, group=1)


def _gemm(low: Lowering, node: Node) -> Value:
    a, matrix = node.attributes, _float_constant(low, node, 1)
    if a.get("alpha", 1.0) != 1.0 or a.get("beta", 1.0) != 1.0 or a.get("transA"):
        raise UnsupportedError(node.kind, "only x W + b is compiled")
    return _linear(low, node, low.float_tensor(node.inputs[0]), matrix if a.get("transB") else matrix.T)


def _matmul(low: Lowering, node: Node) -> Value:
    right = low.value(node.inputs[1])
    a = low.float_tensor(node.inputs[0])
    if isinstance(right, Constant) and right.values.ndim == 2:
        return _linear(low, node, a, right.values.astype(np.float32).T)
    b = low.float_tensor(node.inputs[1])
    if len(a.shape) != len(b.shape) or a.shape[:-2] != b.shape[:-2]:
        raise UnsupportedError(node.kind, f"{list(a.shape)} times {list(b.shape)}: batches that differ")
    return low.emit("matmul", [a, b], Tensor(node.outputs[0], (*a.shape[:-1], b.shape[-1])))


def _binary(low: Lowering, node: Node) -> Value:
    found = [low.value(n) for n in node.inputs]
    if all(isinstance(v, Constant) for v in found):
        x, y = (v.values for v in found if isinstance(v, Constant))
        done = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[node.kind](x, y)
        return Constant(done.astype(x.dtype))
    a, b = (low.float_tensor(n) for n in node.inputs)
    shape = np.broadcast_shapes(a.shape, b.shape)
    return low.emit(node.kind.lower(), [a, b], Tensor(node.outputs[0], shape))


def _unary(low: Lowering, node: Node) -> Value:
    found = function_of(low, node)
    if found is None:
        raise UnsupportedError(node.kind, f"its attributes {node.attributes} have no kernel")
    source, (function, limits) = low.float_tensor(node.inputs[0]), found
    more = {"clamp": limits} if limits else {}
    return low.emit("unary", [source], Tensor(node.outputs[0], source.shape), function=function, **more)


def _mean(low: Lowering, node: Node) -> Value:
    source = low.float_tensor(node.inputs[0])
    axes, shape, count = mean_geometry(low, node, source.shape)
    multiplier = float(np.float32(1) / np.float32(count))
    return low.emit("mean", [source], Tensor(node.outputs[0], shape), axes=axes, multiplier=multiplier)


def _softmax(low: Lowering, node: Node) -> Value:
    view, quantizer = low.value(node.inputs[0]), _quantizer_behind(low, node)
    source = view.codes if isinstance(view, View) else low.float_tensor(node.inputs[0])
    if node.attributes.get("axis", -1) not in (-1, len(source.shape) - 1):
        raise UnsupportedError(node.kind, "only the last axis is compiled")
    if isinstance(view, View) and quantizer is not None and source.shape[-1] <= LONGEST_SOFTMAX:
        return _softmax_on_codes(low, node, view, quantizer)
    return low.emit("softmax", [low.float_tensor(node.inputs[0])], Tensor(node.outputs[0], source.shape))


def _quantizer_behind(low: Lowering, node: Node) -> Node | None:
    """Return the only QuantizeLinear that a node's result goes into, with nothing but transpositions between."""
    while node.outputs[0] not in low.graph.outputs:
        readers = low.readers.get(node.outputs[0], [])
        if len(readers) != 1 or readers[0].kind not in ("QuantizeLinear", "Transpose"):
            return None
        (node,) = readers
        if node.kind == "QuantizeLinear":
            return node
    return None


def _softmax_on_codes(low: Lowering, node: Node, view: View, quantizer: Node) -> View:
    """Make codes of codes: a code's power depends only on how far it is below the largest."""
    scale, zero = low.quantization(quantizer)
    behind = quantizer.inputs[0] == node.outputs[0]
    name = quantizer.outputs[0] if behind else f"{node.outputs[0]}/codes"
    powers = np.rint(np.exp(-np.arange(256) * float(view.scale)) * POWER_ONE).astype(np.int32)
    made = Tensor(name, view.codes.shape, scale, zero)
    multiplier = float(np.float32(1.0) / np.float32(scale))
    low.emit("softmax", [low.codes_of(view)], made, powers=powers, multiplier=multiplier)
    return View(made, scale, zero)


def _layernorm(low: Lowering, node: Node) -> Value:
    source = low.float_tensor(node.inputs[0])
    if node.attributes.get("axis", -1) not in (-1, len(source.shape) - 1):
        raise UnsupportedError(node.kind, "only the last axis is compiled")
    side = source.shape[-1]
    scale = _float_constant(low, node, 1)
    bias = _float_constant(low, node, 2, np.zeros(side, np.float32))
    epsilon = float(node.attributes.get("epsilon", 1e-5))
    output = Tensor(node.outputs[0], source.shape)
    return low.emit("layernorm", [source], output, scale=scale, bias=bias, epsilon=epsilon)


def _concat(low: Lowering, node: Node) -> Value:
    values = [low.value(n) for n in node.inputs]
    axis = int(node.attributes["axis"])
    if all(isinstance(v, Constant) for v in values):
        return Constant(np.concatenate([v.values for v in values if isinstance(v, Constant)], axis))
    parts = [low.float_tensor(n) for n in node.inputs]
    axis %= len(parts[0].shape)
    sides = [sum(p.shape[i] for p in parts) if i == axis else side for i, side in enumerate(parts[0].shape)]
    return low.emit("concat", parts, Tensor(node.outputs[0], tuple(sides)), axis=axis)


def _cast(low: Lowering, node: Node) -> Value:
    value = low.value(node.inputs[0])
    if isinstance(value, Constant):
        kinds = {1: np.float32, 6: np.int32, 7: np.int64}
        if node.attributes["to"] not in kinds:
            raise UnsupportedError(node.kind, f"to ONNX type {node.attributes['to']}")
        return Constant(value.values.astype(kinds[node.attributes["to"]]))
    if isinstance(value, Places) and node.attributes["to"] in (6, 7):
        return value
    if node.attributes["to"] != 1:
        raise UnsupportedError(node.kind, f"to ONNX type {node.attributes['to']}")
    return value


def _range(low: Lowering, node: Node) -> Value:
    start, stop, step = (int(low.constant(n).values.reshape(())) for n in node.inputs)
    require_size(node.outputs[0], (len(range(start, stop, step)),))
    return Constant(np.arange(start, stop, step, dtype=np.int64))


FLOAT_RULES: dict[str, Callable[[Lowering, Node], Value]] = {
    "Cast": _cast,
    "Concat": _concat,
    "BatchNormalization": _batchnorm,
    "Conv": _conv,
    "Gemm": _gemm,
    "GlobalAveragePool": _mean,
    "LayerNormalization": _layernorm,
    "MatMul": _matmul,
    "Range": _range,
    "ReduceMean": _mean,
    "Softmax": _softmax,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _binary),
    **dict.fromkeys(
        ("Clip", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Relu", "Sigmoid", "Sqrt", "Tanh"), _unary
    ),
}
"""How each node is translated to floats, by ONNX's name."""
