"""Rules for nodes on codes; each returns None where it leaves the node to the floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.native.arithmetic import FUNCTIONS, dequantized, f32, quantized
from qdeploy.native.functions import function_of
from qdeploy.native.geometry import as_image, as_line, conv_geometry
from qdeploy.native.ir import Tensor
from qdeploy.native.lowering import Constant, Lowering, View
from qdeploy.native.onnx_graph import Node

Array = NDArray[Any]
Limits = tuple[float, float] | None
ALL_CODES = np.arange(256, dtype=np.uint8)


def requantized(low: Lowering, view: View, name: str, scale: float, zero: int) -> Tensor:
    """Return a view's values as codes of another scale."""
    table = quantized(dequantized(ALL_CODES, view.scale, view.zero), scale, zero)
    return low.emit("table", [view.codes], Tensor(name, view.codes.shape, scale, zero), table=table)


def _codes(low: Lowering, name: str) -> Tensor | None:
    """Return a name's codes: computed, or constant ones."""
    value = low.value(name)
    if isinstance(value, View):
        return low.codes_of(value)
    if not isinstance(value, Constant) or value.codes is None or value.scale is None or value.scale.size != 1:
        return None
    if value.codes.dtype not in (np.uint8, np.int8):
        return None
    raised = 128 if value.codes.dtype == np.int8 else 0
    data = (value.codes.astype(np.int16) + raised).astype(np.uint8)
    return Tensor(name, data.shape, float(value.scale.reshape(())), value.zero + raised, data)


def _weight(low: Lowering, name: str) -> tuple[Array, Array] | None:
    """Return a constant's int8 codes around zero, and their scales."""
    value = low.value(name)
    if not isinstance(value, Constant) or value.codes is None or value.scale is None:
        return None
    if value.codes.dtype != np.int8 or value.zero != 0:
        return None
    return value.codes, value.scale.reshape(-1)


def _bias(low: Lowering, node: Node, outputs: int, step: Array) -> Array | None:
    """Return the bias in steps of the sums."""
    if len(node.inputs) < 3 or not node.inputs[2]:
        return np.zeros(outputs, np.int32)
    value = low.value(node.inputs[2])
    if not isinstance(value, Constant):
        return None
    if value.codes is not None and value.codes.dtype == np.int32 and value.zero == 0:
        return value.codes.reshape(-1).astype(np.int32)
    steps = np.rint(value.values.reshape(-1).astype(np.float64) / step.astype(np.float64))
    return np.broadcast_to(np.clip(steps, -(2**31), 2**31 - 1).astype(np.int32), (outputs,))


def _products(
    low: Lowering, node: Node, kind: str, weight: Array, scales: Array, output: Tensor, limits: Limits, **more: Any
) -> Tensor | None:
    """Emit a convolution or a matrix product with constant weights ``[O, ...]``."""
    value = low.value(node.inputs[0])
    assert isinstance(value, View)
    assert output.scale is not None
    step = np.broadcast_to(f32(value.scale) * scales.astype(np.float32), (weight.shape[0],))
    bias = _bias(low, node, weight.shape[0], step)
    if bias is None:
        return None
    multiplier = (step / f32(output.scale)).astype(np.float32)
    if limits:
        ends = quantized(np.array(limits, np.float32), output.scale, output.zero)
        more["codes"] = (int(ends[0]), int(ends[1]))
    attributes = {"weight": weight, "bias": bias, "multiplier": multiplier, **more}
    codes = low.codes_of(value)
    return low.emit(kind, [as_image(low, codes) if kind == "conv" else codes], output, **attributes)


def _conv(low: Lowering, node: Node, output: Tensor, limits: Limits) -> Tensor | None:
    value, weight = low.value(node.inputs[0]), _weight(low, node.inputs[1])
    if weight is None or not isinstance(value, View):
        return None
    codes, scales = weight
    geometry, shape = conv_geometry(node, value.codes.shape, codes.shape)
    if len(value.codes.shape) == 4:
        output.shape = shape
        return _products(low, node, "conv", codes, scales, output, limits, **geometry)
    image = Tensor(f"{output.name}/image", shape, output.scale, output.zero)
    weight_OIHW = codes.reshape(*codes.shape[:2], 1, -1)
    made = _products(low, node, "conv", weight_OIHW, scales, image, limits, **geometry)
    return as_line(low, made, output) if made else None


def _gemm(low: Lowering, node: Node, output: Tensor, limits: Limits) -> Tensor | None:
    a, value, weight = node.attributes, low.value(node.inputs[0]), _weight(low, node.inputs[1])
    plain = a.get("alpha", 1.0) == a.get("beta", 1.0) == 1.0 and not a.get("transA")
    if weight is None or not isinstance(value, View) or not plain:
        return None
    matrix = weight[0] if a.get("transB") else np.ascontiguousarray(weight[0].T)
    output.shape = (value.codes.shape[0], matrix.shape[0])
    return _products(low, node, "linear", matrix, weight[1], output, limits, group=1)


def _matmul(low: Lowering, node: Node, output: Tensor, limits: Limits) -> Tensor | None:
    left, weight = low.value(node.inputs[0]), _weight(low, node.inputs[1])
    if isinstance(left, View) and weight is not None and weight[0].ndim == 2:
        output.shape = (*left.codes.shape[:-1], weight[0].shape[1])
        matrix = np.ascontiguousarray(weight[0].T)
        return _products(low, node, "linear", matrix, weight[1], output, limits, group=1)
    a, b = (_codes(low, n) for n in node.inputs)
    if a is None or b is None or limits or len(a.shape) != len(b.shape) or a.shape[:-2] != b.shape[:-2]:
        return None
    output.shape = (*a.shape[:-1], b.shape[-1])
    return low.emit("matmul", [a, b], output, multiplier=_ratio(a, b, output))


def _ratio(a: Tensor, b: Tensor, output: Tensor) -> float:
    return float(f32(a.scale) * f32(b.scale) / f32(output.scale))


def _add(low: Lowering, node: Node, output: Tensor, limits: Limits) -> Tensor | None:
    a, b = (_codes(low, n) for n in node.inputs)
    if a is None or b is None:
        return None
    output.shape = np.broadcast_shapes(a.shape, b.shape)
    ratio_a, ratio_b = (f32(t.scale) / f32(output.scale) for t in (a, b))
    fixed = f32(output.zero) - (ratio_a * f32(a.zero) + ratio_b * f32(b.zero))
    ratios = {"ratio_a": float(ratio_a), "ratio_b": float(ratio_b), "fixed": float(fixed)}
    if not limits:
        return low.emit("add", [a, b], output, **ratios)
    free = Tensor(f"{output.name}/free", output.shape, output.scale, output.zero)
    low.emit("add", [a, b], free, **ratios)
    assert output.scale is not None
    low_code, high_code = quantized(np.array(limits, np.float32), output.scale, output.zero)
    return low.emit("table", [free], output, table=np.clip(ALL_CODES, low_code, high_code))


def _mul(low: Lowering, node: Node, output: Tensor, limits: Limits) -> Tensor | None:
    a, b = (_codes(low, n) for n in node.inputs)
    if a is None or b is None or limits:
        return None
    output.shape = np.broadcast_shapes(a.shape, b.shape)
    return low.emit("mul", [a, b], output, multiplier=_ratio(a, b, output))


def _unary(low: Lowering, node: Node, output: Tensor, limits: Limits) -> Tensor | None:
    view, found = low.value(node.inputs[0]), function_of(low, node)
    if not isinstance(view, View) or found is None or limits or output.scale is None:
        return None
    function, ends = found
    values = dequantized(ALL_CODES, view.scale, view.zero)
    made = values if function == "clamp" else FUNCTIONS[function](values)
    if ends:
        made = np.minimum(np.maximum(made, f32(ends[0])), f32(ends[1]))
    output.shape = view.codes.shape
    return low.emit("table", [view.codes], output, table=quantized(made, output.scale, output.zero))


def _concat(low: Lowering, node: Node, output: Tensor, limits: Limits) -> Tensor | None:
    views = [low.value(n) for n in node.inputs]
    if limits or output.scale is None or not all(isinstance(v, View) for v in views):
        return None
    parts = []
    for i, view in enumerate(views):
        assert isinstance(view, View)
        same = (view.scale, view.zero) == (output.scale, output.zero)
        made = requantized(low, view, f"{output.name}/{i}", output.scale, output.zero)
        parts.append(low.codes_of(view) if same else made)
    axis = int(node.attributes["axis"]) % len(parts[0].shape)
    sides = [sum(p.shape[i] for p in parts) if i == axis else side for i, side in enumerate(parts[0].shape)]
    output.shape = tuple(sides)
    return low.emit("concat", parts, output, axis=axis)


def _mean(low: Lowering, node: Node, output: Tensor, limits: Limits) -> Tensor | None:
    view = low.value(node.inputs[0])
    if not isinstance(view, View) or limits:
        return None
    axes, output.shape, count = mean_geometry(low, node, view.codes.shape)
    multiplier = f32(view.scale) / (f32(count) * f32(output.scale))
    return low.emit("mean", [low.codes_of(view)], output, axes=axes, multiplier=float(multiplier))


def mean_geometry(low: Lowering, node: Node, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Return axes, shape of the result and number of values of each mean."""
    rank = len(shape)
    if node.kind == "GlobalAveragePool":
        axes, keep = tuple(range(2, rank)), True
    else:
        given = (
            low.constant(node.inputs[1]).values if len(node.inputs) > 1 else node.attributes.get("axes", range(rank))
        )
        axes, keep = tuple(sorted(int(a) % rank for a in given)), bool(node.attributes.get("keepdims", 1))
    kept = tuple(1 if i in axes else side for i, side in enumerate(shape) if keep or i not in axes)
    return axes, kept, int(np.prod([shape[i] for i in axes]))


IntegerRule = Callable[[Lowering, Node, Tensor, Limits], "Tensor | None"]
INTEGER_RULES: dict[str, IntegerRule] = {
    "Add": _add,
    "Concat": _concat,
    "Conv": _conv,
    "Gemm": _gemm,
    "GlobalAveragePool": _mean,
    "MatMul": _matmul,
    "Mul": _mul,
    "ReduceMean": _mean,
    **dict.fromkeys(("Clip", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Relu", "Sigmoid", "Tanh"), _unary),
}
"""How each node is translated where its inputs and its output are codes, by ONNX's name."""
