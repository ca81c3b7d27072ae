"""A graph that computes in other floats than float32, written in float32: what the rest of an export knows."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from qdeploy.core.errors import InputError
from qdeploy.export.graph.walk import with_bodies

HALVES = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
OTHERS = {**HALVES, TensorProto.DOUBLE: "float64"}
TYPE_ATTRIBUTES = ("to", "dtype")


def other_floats(model: onnx.ModelProto) -> str | None:
    """Return the type that a graph computes in if it is not float32 alone.

    That is the type of its weights or, where parts of it are cast to 16 bits, of these.
    """
    graphs = list(with_bodies(model.graph))
    weights = {i.data_type for graph in graphs for i in graph.initializer if len(i.dims) > 1}
    casts = {a.i for graph in graphs for n in graph.node if n.op_type == "Cast" for a in n.attribute if a.name == "to"}
    found = weights | (casts & HALVES.keys())
    return next((name for kind, name in OTHERS.items() if kind in found), None)


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same graph with every tensor of other floats in float32.

    Raises:
        InputError: If a value is beyond float32.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for graph in with_bodies(copy.graph):
        for tensor in graph.initializer:
            _convert(tensor)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in OTHERS:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for attribute in (a for node in graph.node for a in node.attribute):
            if attribute.name in TYPE_ATTRIBUTES and attribute.i in OTHERS:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t"):
                _convert(attribute.t)
    return copy


def _convert(tensor: TensorProto) -> None:
    if tensor.data_type not in OTHERS:
        return
    wide = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        values = wide.astype(np.float32)
    if not (np.isfinite(values) == np.isfinite(wide)).all():
        raise InputError(f"the values of '{tensor.name}' are beyond float32", found=f"{np.abs(wide).max():g}")
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
