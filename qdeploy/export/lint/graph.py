"""A read-only view of an ONNX graph for the lint rules: who makes and who reads a tensor, and what is constant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper

from qdeploy.export.graph.functions import without_functions

STANDARD = ("", "ai.onnx")
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_SCALARS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


class Graph:
    """The nodes of a model, of its functions and of its inner graphs (If, Loop), in one list."""

    def __init__(self, model: onnx.ModelProto) -> None:
        model = without_functions(model)
        self.model = model
        self.opset = max((o.version for o in model.opset_import if o.domain in STANDARD), default=0)
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.types: dict[str, int] = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
        self._collect(model.graph)
        self.inputs = {v.name for v in model.graph.input} - set(self.constants)
        self.outputs = {v.name for v in model.graph.output}
        self.maker = {output: node for node in self.nodes for output in node.output if output}
        self.readers: dict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
        for node in self.nodes:
            for index, name in enumerate(node.input):
                self.readers[name].append((node, index))
        self._static = set(self.constants)
        for node in self.nodes:
            if node.input and all(name in self._static or not name for name in node.input):
                self._static.update(node.output)

    def _collect(self, graph: onnx.GraphProto) -> None:
        self.constants.update({t.name: t for t in graph.initializer})
        for node in graph.node:
            self.nodes.append(node)
            if node.op_type == "Constant" and node.output:
                tensor = _constant(node)
                if tensor is not None:
                    self.constants[node.output[0]] = tensor
            for attribute in node.attribute:
                for inner in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
                    self._collect(inner)

    def of(self, *operators: str) -> Iterator[NodeProto]:
        """Return the nodes of some operators."""
        return (n for n in self.nodes if n.op_type in operators)

    @property
    def external(self) -> list[str]:
        """The constants whose data are in another file."""
        return [name for name, t in self.constants.items() if t.data_location == TensorProto.EXTERNAL]

    def is_static(self, name: str) -> bool:
        """Tell whether a tensor is a constant or computed from constants only."""
        return name in self._static

    def array(self, name: str) -> NDArray[Any] | None:
        """Return a constant's values; None if it is not a constant or its data are in another file."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        return numpy_helper.to_array(tensor)

    def rank(self, name: str) -> int:
        """Return the number of dimensions of a constant."""
        return len(self.constants[name].dims)

    def made_by(self, name: str, *operators: str) -> NodeProto | None:
        """Return the node that makes a tensor, if it is one of some operators."""
        node = self.maker.get(name)
        return node if node is not None and node.op_type in operators else None

    def read_by(self, name: str) -> list[NodeProto]:
        """Return the nodes that read a tensor."""
        return [node for node, _ in self.readers[name]]

    def zero_point(self, node: NodeProto) -> NDArray[np.int64]:
        """Return the zero point of a Q or DQ node; where it is unknown or left out, 0."""
        values = self.array(node.input[2]) if len(node.input) > 2 else None
        return np.zeros(1, np.int64) if values is None else values.astype(np.int64).reshape(-1)

    def scale_size(self, node: NodeProto) -> int:
        """Return how many scales a Q or DQ node has."""
        tensor = self.constants.get(node.input[1])
        return 1 if tensor is None else int(np.prod(tensor.dims, dtype=np.int64))

    def integer_type(self, node: NodeProto) -> int:
        """Return the integer type (of ``TensorProto``) on the integer side of a Q or DQ node."""
        for name in (*node.input[2:3], *(node.input[:1] if node.op_type == DEQUANTIZE else ())):
            if name in self.constants:
                return int(self.constants[name].data_type)
        if node.op_type == DEQUANTIZE:
            source = self.made_by(node.input[0], QUANTIZE)
            return self.types.get(node.input[0], TensorProto.UINT8) if source is None else self.integer_type(source)
        chosen = [a.i for a in node.attribute if a.name == "output_dtype" and a.i]
        return chosen[0] if chosen else TensorProto.UINT8

    def integers(self, dq: NodeProto) -> NDArray[np.int64] | None:
        """Return the integers that a DQ of constants reads: stored, or rounded from float by a Q."""
        stored = self.array(dq.input[0])
        if stored is not None:
            return stored.astype(np.int64)
        q = self.made_by(dq.input[0], QUANTIZE)
        if q is None:
            return None
        values, scale = self.array(q.input[0]), self.array(q.input[1])
        if values is None or scale is None:
            return None
        if scale.size > 1:
            axis = next((a.i for a in q.attribute if a.name == "axis"), 1)
            shape = [1] * values.ndim
            shape[axis] = -1
            scale = scale.reshape(shape)
        return np.rint(values / scale).astype(np.int64)

    def activation_quantizers(self) -> Iterator[NodeProto]:
        """Return each Q of a tensor that depends on the input, and each DQ of an integer input."""
        yield from (n for n in self.of(QUANTIZE) if not self.is_static(n.input[0]))
        yield from (n for n in self.of(DEQUANTIZE) if n.input[0] in self.inputs)

    def constant_dequantizers(self) -> Iterator[NodeProto]:
        """Return each DQ of constants."""
        return (n for n in self.of(DEQUANTIZE) if self.is_static(n.input[0]))

    def integer_layers(self) -> Iterator[NodeProto]:
        """Return each Conv, Gemm and MatMul whose two operands are dequantized."""
        for node in self.of("Conv", "Gemm", "MatMul"):
            operands = [self.made_by(name, DEQUANTIZE) for name in node.input[:2]]
            if None not in operands:
                yield node


def label(node: NodeProto) -> str:
    """Name a node for a reader, also where it has no name."""
    return node.name or f"{node.op_type} giving '{next(iter(node.output), '')}'"


def _constant(node: NodeProto) -> TensorProto | None:
    for attribute in node.attribute:
        if attribute.name == "value":
            return attribute.t
        if attribute.name in _SCALARS:
            value = onnx.helper.get_attribute_value(attribute)
            return numpy_helper.from_array(np.asarray(value, _SCALARS[attribute.name]))
    return None
