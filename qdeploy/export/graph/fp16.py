"""A float32 graph as an fp16 one, typed tensor by tensor: what strongly typed runtimes need.

Own code because ``onnxruntime.transformers.float16`` gives invalid graphs when operators are to stay in float32: it
repeats the names of casts and loses the order of nodes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from qdeploy.core.errors import InputError, one_line
from qdeploy.export.graph.inner_outputs import open_with_outputs
from qdeploy.export.graph.walk import STANDARD, FreeNames, all_nodes, bodies, is_standard, with_bodies
from qdeploy.export.int8.units import MATRIX_OPERATORS

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
FLOAT_OPERATORS = frozenset(
    {
        # sums over many values: how wide a runtime's sum of fp16 values is, is its own choice
        *("LayerNormalization", "ReduceMean", "ReduceSum", "Softmax", "GlobalAveragePool"),
        # inputs that ONNX has in float32 only
        *("Resize", "Range", "CumSum", "Celu"),
        "MeanVarianceNormalization",  # a function of operators, with constants in float32
    }
)
LARGEST = float(np.finfo(np.float16).max)


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a float32 graph; inputs and outputs stay as they are, ``FLOAT_OPERATORS`` and others float32.

    The others are what holds a graph (If, Loop, Scan) and ONNX Runtime's own operators.

    Raises:
        InputError: If a weight is beyond fp16's range, the graph is quantized, or nothing in it would be fp16.
    """
    if any(n.op_type == "QuantizeLinear" for n in model.graph.node):
        raise InputError("fp16 is made from the fp32 graph: the smallest INT8 scales are below fp16's range")
    if not any(is_standard(n, *MATRIX_OPERATORS) for n in model.graph.node) and any(
        is_standard(n, *MATRIX_OPERATORS) for n in all_nodes(model)
    ):
        raise InputError(
            "all layers of the model are inside If, Loop or Scan, which fp16 leaves alone", fix="leave out `fp16`"
        )
    try:
        typed = onnx.shape_inference.infer_shapes(model, check_type=True)
        result = _Conversion(typed).run()
        onnx.checker.check_model(result, full_check=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise InputError(f"the model cannot be written in fp16: {one_line(error)}", fix="leave out `fp16`") from error
    return result


def _floats_besides(model: onnx.ModelProto, known: Mapping[str, int]) -> set[str]:
    """Return the float32 tensors whose type onnx does not infer, as behind ONNX Runtime's own operators."""
    unknown = [o for node in model.graph.node for o in node.output if o and o not in known]
    if not unknown:
        return set()
    return {o.name for o in open_with_outputs(model, unknown).get_outputs() if o.type == "tensor(float)"}


class _Conversion:
    """Walks the nodes in order; every float tensor exists as float32, fp16 or, where both are read, both."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.result = onnx.ModelProto()
        self.result.CopyFrom(model)
        for field in ("node", "initializer", "value_info"):
            self.result.graph.ClearField(field)
        self.nodes = list(graph.node)
        self.names = FreeNames(graph)
        self.outputs = {o.name for o in graph.output}
        self.weights = {i.name: i for i in graph.initializer}
        kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
        kinds.update((i.name, i.data_type) for i in graph.initializer)
        self.floats = {name for name, kind in kinds.items() if kind == FLOAT} | _floats_besides(model, kinds)
        self.made: dict[tuple[str, int], str] = {
            (i.name, FLOAT): i.name for i in graph.input if i.name in self.floats and i.name not in self.weights
        }
        """The name under which a tensor exists in a type."""

    def run(self) -> onnx.ModelProto:
        """Return the converted graph."""
        for node in self.nodes:
            self._convert(node)
        for name in sorted(self.outputs & self.floats):
            if self.made.get((name, FLOAT)) != name:
                self._cast(name, FLOAT, to=name)
        return self.result

    def _convert(self, node: onnx.NodeProto) -> None:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        inside = [graph for body in bodies(new) for graph in with_bodies(body)]
        kind = FLOAT if inside or node.domain not in STANDARD or node.op_type in FLOAT_OPERATORS else HALF
        self._give_inside(inside)
        new.input[:] = [self._read(name, kind) for name in node.input]
        if kind == HALF:
            _retype_attributes(new)
        for i, name in enumerate(node.output):
            if name in self.floats:
                new.output[i] = self.names(f"{name}_fp16") if kind == HALF and name in self.outputs else name
                self.made[name, kind] = new.output[i]
        self.result.graph.node.append(new)

    def _give_inside(self, graphs: list[onnx.GraphProto]) -> None:
        """Let the graphs inside a node read in float32 what they read of this one."""
        own = {v.name for g in graphs for v in (*g.input, *g.initializer)}
        own.update(o for g in graphs for n in g.node for o in n.output)
        for graph in graphs:
            for node in graph.node:
                node.input[:] = [name if name in own else self._read(name, FLOAT) for name in node.input]
            for value in graph.output:
                value.name = value.name if value.name in own else self._read(value.name, FLOAT)

    def _read(self, name: str, kind: int) -> str:
        """Return the name under which a node of a type reads a tensor, whatever that holds."""
        if name in self.floats:
            return self._as(name, kind)
        if name in self.weights:
            self._keep(self.weights[name])
        return name

    def _as(self, name: str, kind: int) -> str:
        """Return the name of a float tensor in a type; make it if need be."""
        if (name, kind) not in self.made:
            if name in self.weights:
                self.made[name, kind] = self._weight(name, kind)
            else:
                self._cast(name, kind, to=self.names(f"{name}_{'fp16' if kind == HALF else 'fp32'}"))
        return self.made[name, kind]

    def _weight(self, name: str, kind: int) -> str:
        values = numpy_helper.to_array(self.weights[name])
        if kind == FLOAT:
            wide = self.names(f"{name}_fp32")
            self.result.graph.initializer.append(numpy_helper.from_array(values, wide))
            return wide
        beyond = np.abs(values[np.isfinite(values)], dtype=np.float64).max(initial=0.0)
        if beyond > LARGEST:
            raise InputError(f"'{name}' holds {beyond:.3g}, fp16 ends at {LARGEST:.0f}; use the fp32 file")
        self.result.graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), name))
        return name

    def _keep(self, weight: onnx.TensorProto) -> None:
        """Keep a tensor that is no float."""
        if (weight.name, weight.data_type) not in self.made:
            self.made[weight.name, weight.data_type] = weight.name
            self.result.graph.initializer.append(weight)

    def _cast(self, name: str, kind: int, to: str) -> None:
        source = self.made[name, FLOAT if kind == HALF else HALF]
        node = onnx.helper.make_node("Cast", [source], [to], name=self.names(f"{to}/Cast"), to=kind)
        self.result.graph.node.append(node)
        self.made[name, kind] = to


def _retype_attributes(node: onnx.NodeProto) -> None:
    """Let casts to float32 and constants give fp16."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
            attribute.i = HALF
        elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == FLOAT:
            values = numpy_helper.to_array(attribute.t).astype(np.float16)
            attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))
