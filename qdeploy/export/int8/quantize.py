"""Explicit Q/DQ INT8 from a float graph and its ranges, in the encoding of a target.

The graphs are those of ONNX Runtime's own QDQ quantizer (a test compares what both compute, bit by bit), written some
ten times as fast, because the float search writes dozens of them, and with two differences: what stays in float reads
floats wherever it can, and GELU may run on integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qdeploy.export.int8.encodings import Encoding
from qdeploy.export.int8.ranges import Range

GELU_SLOPE = 1.702
"""x sigmoid(1.702 x) differs from GELU by at most 0.021 (Hendrycks and Gimpel, 2016, section 2)."""
GELU_LOW = -0.164
"""Least value of x sigmoid(1.702 x)."""
INT32_LIMIT = 2**31 / 1.0001
FAMILIAR = ("Reshape", "Transpose", "Split")
"""Operators that only move values: their outputs have the scale of their input."""
ABSORBED = ("Relu", "Clip")
"""Operators that clip as an asymmetric range does: behind an integer operator they are removed."""


def quantize(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    encoding: Encoding,
    float_nodes: Iterable[str] = (),
    biases: Mapping[str, NDArray[np.float32]] | None = None,
) -> onnx.ModelProto:
    """Insert Q/DQ pairs around the operators of the encoding.

    Args:
        model: The float graph; it is not changed.
        ranges: The range of each of its tensors.
        encoding: What the target wants.
        float_nodes: Names of nodes that stay in float.
        biases: By the name of a Conv or Gemm, a bias that expects rounded weights (``bias_correction``).
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    spans, stay = dict(ranges), frozenset(float_nodes)
    gates = _gelu_as_sigmoid(copy.graph, spans, stay) if encoding.integer_gelu else frozenset[str]()
    _Writer(graph=copy.graph, ranges=spans, encoding=encoding, stay=stay, gates=gates, corrected=biases or {}).write()
    onnx.checker.check_model(copy)
    return copy


def int8_of_portable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite the uint8 activations around 128 of a ``portable`` graph as int8 around 0: the same numbers.

    ONNX Runtime computes the same from both but for a rounding now and then, so accuracy measured on a CPU holds for
    the graph that TensorRT gets.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    points = {n.input[2] for n in copy.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
    for tensor in copy.graph.initializer:
        if tensor.name in points and tensor.data_type == onnx.TensorProto.UINT8:
            zero = numpy_helper.to_array(tensor).astype(np.int16) - 128
            tensor.CopyFrom(numpy_helper.from_array(zero.astype(np.int8), tensor.name))
    onnx.checker.check_model(copy)
    return copy


def _gelu_as_sigmoid(graph: onnx.GraphProto, ranges: dict[str, Range], stay: frozenset[str]) -> frozenset[str]:
    """Write each Gelu as x times its gate, and give the names of the gates' Sigmoid nodes.

    The gate's slope is left out here: what a gate reads has a scale of its own, 1.702 times as large.
    """
    nodes, gates = [], []
    for node in graph.node:
        if node.op_type != "Gelu" or node.name in stay or node.input[0] not in ranges:
            nodes.append(node)
            continue
        (x,), (y,) = node.input, node.output
        gate, name = f"{y}_gate", f"{node.name}/Sigmoid"
        ranges[gate] = (0.0, _sigmoid(GELU_SLOPE * ranges[x][1]))
        ranges[y] = (min(ranges[y][0], GELU_LOW), ranges[y][1])
        gates.append(name)
        nodes += [helper.make_node("Sigmoid", [x], [gate], name), helper.make_node("Mul", [x, gate], [y], node.name)]
    del graph.node[:]
    graph.node.extend(nodes)
    return frozenset(gates)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


@dataclass(kw_only=True)
class _Writer:
    """Marks the tensors that need a Q/DQ pair, then writes the graph anew."""

    graph: onnx.GraphProto
    ranges: dict[str, Range]
    encoding: Encoding
    stay: frozenset[str]
    gates: frozenset[str]
    corrected: Mapping[str, NDArray[np.float32]]
    _marked: dict[str, str] = field(init=False, default_factory=dict)
    """Each tensor that gets a pair, and the tensor whose range sets its scale."""
    _weights: dict[str, int | None] = field(init=False, default_factory=dict)
    """Each constant that becomes integers, and the axis of its scales."""
    _biases: list[onnx.NodeProto] = field(init=False, default_factory=list)
    _integer: set[str] = field(init=False, default_factory=set)
    """Names of the nodes that compute on integers."""
    _gone: set[str] = field(init=False, default_factory=set)
    _new: list[onnx.TensorProto] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._constants = {i.name: i for i in self.graph.initializer}
        self._outputs = {o.name for o in self.graph.output}
        self._makers = {o: n for n in self.graph.node for o in n.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def write(self) -> None:
        """Rewrite the graph in place: mark what becomes INT8, then insert Q/DQ pairs, weights and biases."""
        for node in self.graph.node:
            if node.op_type in self.encoding.operators and node.name not in self.stay:
                self._mark_node(node)
        scales = {name: self._weight(name, axis) for name, axis in self._weights.items()}
        biases = [node for b in self._biases for node in self._bias(b, scales)]
        pairs = {name: self._pair(name) for name in self._marked}
        nodes = [*(d for dq, _ in scales.values() for d in dq), *biases]
        for node in self.graph.node:
            if node.name in self._gone:
                continue
            if node.name in self.gates:
                nodes.append(self._steep(node))
            nodes.append(node)
            nodes += [pair for output in self._original(node) for pair in pairs.get(output, ())]
        self._use_pairs(nodes)
        used = {name for node in nodes for name in node.input}
        kept = [i for i in (*self.graph.initializer, *self._new) if i.name in used]
        del self.graph.node[:]
        del self.graph.initializer[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(kept)

    def _mark_node(self, node: onnx.NodeProto) -> None:
        kind = node.op_type
        if kind in ("Conv", "Gemm", "MatMul"):
            self._mark_matrix(node)
        elif kind in FAMILIAR:
            if node.input[0] not in self._marked and kind != "Split":
                return
            self._mark(node.input[0])
            for name in node.output:
                self._mark(name, self._marked.get(node.input[0]))
        elif kind in ABSORBED:
            if node.input[0] not in self._marked:
                return
            self._absorb(node)
            self._mark(node.output[0])
        else:
            for name in (*node.input, *node.output):
                self._mark(name)
        self._integer.add(node.name)

    def _mark(self, name: str, like: str | None = None) -> None:
        if name in self._constants:
            if self._constants[name].data_type == onnx.TensorProto.FLOAT:
                self._weights.setdefault(name, None)
        elif name in self.ranges:
            self._marked.setdefault(name, like or name)

    def _mark_matrix(self, node: onnx.NodeProto) -> None:
        self._mark(node.input[0])
        self._mark(node.output[0])
        weight = node.input[1]
        if weight not in self._constants:
            self._mark(weight)
            return
        if node.name in self.corrected:
            name = f"{node.name}/corrected"
            del node.input[2:]
            node.input.append(name)
            self._constants[name] = self._add(name, self.corrected[node.name])
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        axis = 0 if node.op_type == "Conv" or transposed else 1
        self._weights[weight] = axis if len(self._constants[weight].dims) > axis else None
        if len(node.input) == 3 and self.encoding.quantized_bias and node.input[2] in self._constants:
            self._biases.append(node)

    def _absorb(self, node: onnx.NodeProto) -> None:
        (before, *_), (after,) = node.input, node.output
        if self.encoding.symmetric or len(self._readers[before]) > 1 or before in self._outputs:
            return
        maker = self._makers[before]
        maker.output[list(maker.output).index(before)] = after
        self._makers[after] = maker
        del self._marked[before]
        self._gone.add(node.name)

    def _original(self, node: onnx.NodeProto) -> list[str]:
        """Return a node's outputs, and let one that is the graph's be made by its pair's end instead."""
        names = list(node.output)
        for i, name in enumerate(names):
            if name in self._marked and name in self._outputs:
                node.output[i] = _before(name)
        return names

    def _pair(self, name: str) -> list[onnx.NodeProto]:
        scale, zero = self._parameters(self._marked[name])
        first, last = (_before(name), name) if name in self._outputs else (name, _after(name))
        return [
            helper.make_node("QuantizeLinear", [first, scale, zero], [_integers(name)], f"{name}/Q"),
            helper.make_node("DequantizeLinear", [_integers(name), scale, zero], [last], f"{name}/DQ"),
        ]

    def _parameters(self, name: str) -> tuple[str, str]:
        """Return the names of a tensor's scale and zero point; the constants are made once."""
        scale, zero = f"{name}_scale", f"{name}_zero_point"
        if scale not in self._constants:
            values = scale_and_zero(self.ranges[name], self.encoding)
            for constant, value in zip((scale, zero), values, strict=True):
                self._constants[constant] = self._add(constant, value)
        return scale, zero

    def _add(self, name: str, value: NDArray[np.generic]) -> onnx.TensorProto:
        tensor: onnx.TensorProto = numpy_helper.from_array(value, name)
        self._new.append(tensor)
        return tensor

    def _steep(self, gate: onnx.NodeProto) -> onnx.NodeProto:
        """Let a gate read its input's integers with a scale 1.702 times as large: that costs nothing."""
        (x,) = gate.input
        scale, zero = self._parameters(self._marked[x])
        steep = f"{gate.name}/scale"
        self._add(steep, numpy_helper.to_array(self._constants[scale]) * np.float32(GELU_SLOPE))
        gate.input[0] = f"{gate.name}/x"
        return helper.make_node("DequantizeLinear", [_integers(x), steep, zero], [gate.input[0]], f"{gate.name}/DQ")

    def _weight(self, name: str, axis: int | None) -> tuple[list[onnx.NodeProto], NDArray[np.float32]]:
        """Make a constant's integers; gives the node that reads them, and their scales."""
        values = numpy_helper.to_array(self._constants[name])
        if axis is None and any(r.op_type not in ("Conv", "Gemm", "MatMul") for r in self._readers[name]):
            span = (min(float(values.min()), 0.0), max(float(values.max()), 0.0))
            scale, zero = scale_and_zero(span, self.encoding)
            integers = quantized(values, scale, zero)
        else:
            scale, zero, integers = self._signed(values, axis, self._least_scale(name))
        q, s, z = _integers(name), f"{name}_scale", f"{name}_zero_point"
        for constant, value in ((q, integers), (s, scale), (z, zero)):
            self._add(constant, value)
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        return [helper.make_node("DequantizeLinear", [q, s, z], [_after(name)], f"{name}/DQ", **attributes)], scale

    def _signed(
        self, values: NDArray[np.float32], axis: int | None, least: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.int8]]:
        top = 64 if self.encoding.seven_bit_weights else 127
        others = tuple(i for i in range(values.ndim) if i != axis)
        extreme = np.abs(values).max(axis=others).astype(np.float64)
        scale = np.maximum(extreme / top, least).astype(np.float32)
        scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1.0), scale)
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        integers = np.clip(np.round(values / scale.reshape(shape if axis is not None else ())), -top, top)
        return scale, np.zeros(scale.shape, np.int8), integers.astype(np.int8)

    def _least_scale(self, weight: str) -> NDArray[np.float64]:
        """Return the smallest scales with which the biases that go with a weight fit into 32 bits."""
        least = np.zeros(1, np.float64)
        for node in self._biases:
            if node.input[1] == weight:
                bias = np.abs(numpy_helper.to_array(self._constants[node.input[2]]).astype(np.float64))
                least = np.maximum(least, bias / (INT32_LIMIT * self._input_scale(node)))
        return least if least.any() else np.zeros((), np.float64)

    def _input_scale(self, node: onnx.NodeProto) -> float:
        scale, _ = scale_and_zero(self.ranges[self._marked[node.input[0]]], self.encoding)
        return float(scale)

    def _bias(
        self, node: onnx.NodeProto, scales: Mapping[str, tuple[list[onnx.NodeProto], NDArray[np.float32]]]
    ) -> list[onnx.NodeProto]:
        """Make a bias's 32-bit integers, in the scale of the products it is added to."""
        name = f"{node.name}/bias"
        values = numpy_helper.to_array(self._constants[node.input[2]])
        scale = (scales[node.input[1]][1] * np.float32(self._input_scale(node))).astype(np.float32)
        integers = np.round(values.astype(np.float64) / scale).astype(np.int32)
        self._add(name, integers)
        self._add(f"{name}_scale", scale)
        self._add(f"{name}_zero_point", np.zeros(scale.shape, np.int32))
        node.input[2] = _after(name)
        attributes: dict[str, Any] = {"axis": 0} if scale.ndim else {}
        inputs = [name, f"{name}_scale", f"{name}_zero_point"]
        return [helper.make_node("DequantizeLinear", inputs, [_after(name)], f"{name}/DQ", **attributes)]

    def _use_pairs(self, nodes: list[onnx.NodeProto]) -> None:
        """Let every reader of a tensor with a pair read the pair's end, and of a weight its integers.

        A float node reads the float itself where that was made in float.
        """
        for node in nodes:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                continue
            for i, name in enumerate(node.input):
                on_integers = node.name in self._integer
                if name in self._weights:
                    node.input[i] = _after(name) if on_integers else name
                elif name in self._marked and name not in self._outputs:
                    maker = self._makers.get(name)
                    if on_integers or (maker is not None and maker.name in self._integer):
                        node.input[i] = _after(name)


def scale_and_zero(span: Range, encoding: Encoding) -> tuple[NDArray[np.float32], NDArray[np.integer[Any]]]:
    """Return the scale and the zero point of a range."""
    low, high = (float(np.float32(end)) for end in span)
    if encoding.symmetric:
        extreme = max(-low, high)
        steps, point = (254.0, 0) if encoding.signed else (255.0, 128)
        scale = 2 * extreme / steps
    else:
        scale = (high - low) / 255.0
        point = round(-low / scale) if scale >= np.finfo(np.float32).tiny else 0
    kind = np.int8 if encoding.signed else np.uint8
    if scale < np.finfo(np.float32).tiny:
        scale = 1.0
    return np.asarray(scale, np.float32), np.asarray(point, kind)


def quantized(
    values: NDArray[np.float32], scale: NDArray[np.float32], zero: NDArray[np.integer[Any]]
) -> NDArray[np.integer[Any]]:
    """Return the integers of values."""
    limits = np.iinfo(zero.dtype)
    return np.clip(np.round(values / scale) + zero.astype(np.float32), limits.min, limits.max).astype(zero.dtype)


def _integers(name: str) -> str:
    return f"{name}_quantized"


def _before(name: str) -> str:
    return f"{name}_float"


def _after(name: str) -> str:
    return f"{name}_dequantized"
