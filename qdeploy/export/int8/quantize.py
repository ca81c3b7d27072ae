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

from qdeploy.export.graph.walk import FreeNames, is_standard, read_inside
from qdeploy.export.int8.divisors import feeding_divisions
from qdeploy.export.int8.encodings import Encoding
from qdeploy.export.int8.own_weights import give_layers_own_weights
from qdeploy.export.int8.ranges import Range
from qdeploy.export.int8.scales import LEAST_PRODUCT, has_scale, has_scales, quantized, scale_and_zero

GELU_SLOPE = 1.702
"""x sigmoid(1.702 x) differs from GELU by at most 0.021 (Hendrycks and Gimpel, 2016, section 2)."""
GELU_LOW = -0.164
"""Least value of x sigmoid(1.702 x)."""
INT32_LIMIT = 2**31 / 1.0001
Signed = tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.int8]]
"""Scales, zero points, which are 0, and integers."""
MATRIX = ("Conv", "Gemm", "MatMul")
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
    integers: Integers | None = None,
) -> onnx.ModelProto:
    """Insert Q/DQ pairs around the operators of the encoding.

    Args:
        model: The float graph; it is not changed.
        ranges: The range of each of its tensors.
        encoding: What the target wants.
        float_nodes: Names of nodes that stay in float, beside those that feed divisions (``divisors``).
        biases: By the name of a Conv or Gemm, a bias that expects rounded weights (``bias_correction``).
        integers: What earlier calls with the same graph and encoding have made of its constants; it is added to.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    spans = {name: span for name, span in ranges.items() if has_scale(span)}
    stay = frozenset(float_nodes) | feeding_divisions(copy.graph)
    names = FreeNames(copy.graph)
    gates = _gelu_as_sigmoid(copy.graph, spans, stay, names) if encoding.integer_gelu else frozenset[str]()
    writer = _Writer(
        graph=copy.graph,
        ranges=spans,
        encoding=encoding,
        stay=stay,
        gates=gates,
        corrected=biases or {},
        names=names,
        integers=Integers() if integers is None else integers,
    )
    writer.write()
    give_layers_own_weights(copy.graph, names)
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


def _gelu_as_sigmoid(
    graph: onnx.GraphProto, ranges: dict[str, Range], stay: frozenset[str], names: FreeNames
) -> frozenset[str]:
    """Write each Gelu as x times its gate, and give the names of the gates' Sigmoid nodes.

    The gate's slope is left out here: what a gate reads has a scale of its own, 1.702 times as large.
    """
    nodes, gates = [], []
    for node in graph.node:
        known = all(name in ranges for name in (*node.input, *node.output))
        if not is_standard(node, "Gelu") or node.name in stay or not known:
            nodes.append(node)
            continue
        (x,), (y,) = node.input, node.output
        gate, name = names(f"{y}_gate"), names(f"{node.name}/Sigmoid")
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
class Integers:
    """What is made of a graph's constants in one encoding: dozens of graphs are written with the same ones."""

    sound: dict[tuple[str, bool], bool] = field(default_factory=dict)
    """Whether integers can hold a constant, by its name and whether it is a bias."""
    extremes: dict[tuple[str, int | None], NDArray[np.float64]] = field(default_factory=dict)
    """The largest magnitudes of a weight, by its name and the axis of its scales."""
    weights: dict[tuple[str, int | None, bytes], NDArray[np.int8]] = field(default_factory=dict)
    """The integers of a weight, by its name, the axis of its scales and these."""


@dataclass(kw_only=True)
class _Writer:
    """Marks the tensors that need a Q/DQ pair, then writes the graph anew."""

    graph: onnx.GraphProto
    ranges: dict[str, Range]
    encoding: Encoding
    stay: frozenset[str]
    gates: frozenset[str]
    corrected: Mapping[str, NDArray[np.float32]]
    names: FreeNames
    integers: Integers
    _marked: dict[str, str] = field(init=False, default_factory=dict)
    """Each tensor that gets a pair, and the tensor whose range sets its scale."""
    _weights: dict[str, int | None] = field(init=False, default_factory=dict)
    """Each constant that becomes integers, and the axis of its scales."""
    _biases: list[onnx.NodeProto] = field(init=False, default_factory=list)
    _integer: set[str] = field(init=False, default_factory=set)
    """Names of the nodes that compute on integers."""
    _gone: set[str] = field(init=False, default_factory=set)
    _new: list[onnx.TensorProto] = field(init=False, default_factory=list)
    _own: dict[tuple[str, str], str] = field(init=False, default_factory=dict)
    """The names that were made of others, by the name and the ending."""

    def __post_init__(self) -> None:
        self._constants = {i.name: i for i in self.graph.initializer}
        self._outputs = {o.name for o in self.graph.output}
        self._inside = read_inside(self.graph)
        self._makers = {o: n for n in self.graph.node for o in n.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def write(self) -> None:
        """Rewrite the graph in place: mark what becomes INT8, then insert Q/DQ pairs, weights and biases."""
        for node in self.graph.node:
            if is_standard(node, *self.encoding.operators) and node.name not in self.stay and self._has_scales(node):
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
        used = self._inside.union(name for node in nodes for name in node.input)
        kept = [i for i in (*self.graph.initializer, *self._new) if i.name in used]
        del self.graph.node[:]
        del self.graph.initializer[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(kept)

    def _has_scales(self, node: onnx.NodeProto) -> bool:
        """Tell whether integers can hold every float that a node would read and make as integers."""
        one = node.op_type in FAMILIAR or node.op_type in ABSORBED
        read = node.input[:1] if one else node.input
        made_of_it = all(self._can_be_integers(name, node) for name in read if name)
        return made_of_it and all(name in self.ranges for name in node.output)

    def _can_be_integers(self, name: str, node: onnx.NodeProto) -> bool:
        bias = node.op_type in MATRIX and name in node.input[2:]
        if name not in self._constants:
            return name in self.ranges or bias  # a computed bias stays in float
        sound = self.integers.sound
        if (name, bias) not in sound:
            sound[name, bias] = has_scales(self._constants[name], bias)
        return sound[name, bias]

    def _named(self, name: str, ending: str) -> str:
        """Return a name made of another, the same each time, which nothing of the graph has."""
        if (name, ending) not in self._own:
            self._own[name, ending] = self.names(f"{name}{ending}")
        return self._own[name, ending]

    def _mark_node(self, node: onnx.NodeProto) -> None:
        kind = node.op_type
        if kind in MATRIX:
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
            name = self._named(node.name, "/corrected")
            del node.input[2:]
            node.input.append(name)
            self._constants[name] = self._add(name, self.corrected[node.name])
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        axis = 0 if node.op_type == "Conv" or transposed else 1
        whole = node.op_type == "MatMul" and len(self._constants[weight].dims) != 2
        shared = self._weights.get(weight, axis) not in (axis, None)  # by layers that give other axes
        self._weights[weight] = None if whole or shared else axis
        if (
            len(node.input) == 3
            and node.input[0] in self._marked
            and self.encoding.quantized_bias
            and node.input[2] in self._constants
        ):
            self._biases.append(node)

    def _absorb(self, node: onnx.NodeProto) -> None:
        (before, *_), (after,) = node.input, node.output
        if self.encoding.symmetric or len(self._readers[before]) > 1 or before in self._outputs:
            return
        if not self._clips_about_zero(node):
            return
        if not self._inside.isdisjoint((before, after)):  # what is read inside is the float, which must be clipped
            return
        maker = self._makers[before]
        maker.output[list(maker.output).index(before)] = after
        self._makers[after] = maker
        del self._marked[before]
        self._gone.add(node.name)

    def _clips_about_zero(self, node: onnx.NodeProto) -> bool:
        """Tell whether an operator's bounds have zero between them, as every range has."""
        names = list(node.input[1:3])  # a Relu has none, and a Clip's may be left out
        if any(name and name not in self._constants for name in names):
            return False
        values = [numpy_helper.to_array(self._constants[n]).item() if n else 0.0 for n in (*names, "", "")[:2]]
        return values[0] <= 0 <= values[1]

    def _original(self, node: onnx.NodeProto) -> list[str]:
        """Return a node's outputs, and let one that is the graph's be made by its pair's end instead."""
        names = list(node.output)
        for i, name in enumerate(names):
            if name in self._marked and name in self._outputs:
                node.output[i] = self._before(name)
        return names

    def _pair(self, name: str) -> list[onnx.NodeProto]:
        scale, zero = self._parameters(self._marked[name])
        first, last = (self._before(name), name) if name in self._outputs else (name, self._after(name))
        q, dq = self._named(name, "/Q"), self._named(name, "/DQ")
        return [
            helper.make_node("QuantizeLinear", [first, scale, zero], [self._integers(name)], q),
            helper.make_node("DequantizeLinear", [self._integers(name), scale, zero], [last], dq),
        ]

    def _parameters(self, name: str) -> tuple[str, str]:
        """Return the names of a tensor's scale and zero point; the constants are made once."""
        scale, zero = self._named(name, "_scale"), self._named(name, "_zero_point")
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
        steep = self._named(gate.name, "/scale")
        self._add(steep, numpy_helper.to_array(self._constants[scale]) * np.float32(GELU_SLOPE))
        gate.input[0] = self._named(gate.name, "/x")
        dq = self._named(gate.name, "/DQ")
        return helper.make_node("DequantizeLinear", [self._integers(x), steep, zero], [gate.input[0]], dq)

    def _weight(self, name: str, axis: int | None) -> tuple[list[onnx.NodeProto], NDArray[np.float32]]:
        """Make a constant's integers; gives the node that reads them, and their scales."""
        if axis is None and any(r.op_type not in MATRIX for r in self._readers[name]):
            values = numpy_helper.to_array(self._constants[name])
            span = (min(float(values.min()), 0.0), max(float(values.max()), 0.0))
            scale, zero = scale_and_zero(span, self.encoding)
            integers = quantized(values, scale, zero)
        else:
            scale, zero, integers = self._signed(name, axis)
        q, s, z = self._integers(name), self._named(name, "_scale"), self._named(name, "_zero_point")
        for constant, value in ((q, integers), (s, scale), (z, zero)):
            self._add(constant, value)
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        dq = self._named(name, "/DQ")
        return [helper.make_node("DequantizeLinear", [q, s, z], [self._after(name)], dq, **attributes)], scale

    def _signed(self, name: str, axis: int | None) -> Signed:
        top = 64 if self.encoding.seven_bit_weights else 127
        known, constant = self.integers, self._constants[name]
        if (name, axis) not in known.extremes:
            values = numpy_helper.to_array(constant)
            others = tuple(i for i in range(values.ndim) if i != axis)
            known.extremes[name, axis] = np.abs(values).max(axis=others).astype(np.float64)
        least = self._least_scale(name)
        extreme, least = known.extremes[name, axis], least if axis is not None else least.max()
        scale = np.maximum(extreme / top, least).astype(np.float32)
        scale = np.where(scale < self._floor(name), np.float32(1.0), scale)
        key = (name, axis, scale.tobytes())
        if key not in known.weights:
            values = numpy_helper.to_array(constant)
            shape = [-1 if i == axis else 1 for i in range(values.ndim)]
            integers = np.clip(np.round(values / scale.reshape(shape if axis is not None else ())), -top, top)
            known.weights[key] = integers.astype(np.int8)
        return scale, np.zeros(scale.shape, np.int8), known.weights[key]

    def _least_scale(self, weight: str) -> NDArray[np.float64]:
        """Return the smallest scales with which the biases that go with a weight fit into 32 bits."""
        least = np.zeros(1, np.float64)
        for node in self._biases:
            if node.input[1] == weight:
                bias = np.abs(numpy_helper.to_array(self._constants[node.input[2]]).astype(np.float64))
                least = np.maximum(least, bias / (INT32_LIMIT * self._input_scale(node)))
        return least if least.any() else np.zeros((), np.float64)

    def _floor(self, weight: str) -> float:
        """Return the scale below which a weight's channel is taken for zeros: its products would be subnormal."""
        nodes = [n for n in self._readers[weight] if n.op_type in MATRIX and n.input[0] in self._marked]
        least = min((self._input_scale(n) for n in nodes), default=1.0)
        return max(float(np.finfo(np.float32).tiny), LEAST_PRODUCT / least)

    def _input_scale(self, node: onnx.NodeProto) -> float:
        scale, _ = scale_and_zero(self.ranges[self._marked[node.input[0]]], self.encoding)
        return float(scale)

    def _bias(
        self, node: onnx.NodeProto, scales: Mapping[str, tuple[list[onnx.NodeProto], NDArray[np.float32]]]
    ) -> list[onnx.NodeProto]:
        """Make a bias's 32-bit integers, in the scale of the products it is added to."""
        name = self._named(node.name, "/bias")
        values = numpy_helper.to_array(self._constants[node.input[2]])
        scale = (scales[node.input[1]][1] * np.float32(self._input_scale(node))).astype(np.float32)
        integers = np.round(values.astype(np.float64) / scale).astype(np.int32)
        inputs = [name, self._named(name, "_scale"), self._named(name, "_zero_point")]
        for constant, value in zip(inputs, (integers, scale, np.zeros(scale.shape, np.int32)), strict=True):
            self._add(constant, value)
        node.input[2] = self._after(name)
        attributes: dict[str, Any] = {"axis": 0} if scale.ndim else {}
        dq = self._named(name, "/DQ")
        return [helper.make_node("DequantizeLinear", inputs, [node.input[2]], dq, **attributes)]

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
                    node.input[i] = self._after(name) if on_integers else name
                elif name in self._marked and name not in self._outputs:
                    maker = self._makers.get(name)
                    if on_integers or (maker is not None and maker.name in self._integer):
                        node.input[i] = self._after(name)

    def _integers(self, name: str) -> str:
        return self._named(name, "_quantized")

    def _before(self, name: str) -> str:
        return self._named(name, "_float")

    def _after(self, name: str) -> str:
        return self._named(name, "_dequantized")
