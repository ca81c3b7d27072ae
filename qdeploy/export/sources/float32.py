"""A foreign graph that computes in float16 or float64, written in float32: what the rest of an export knows."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from qdeploy.core.errors import InputError
from qdeploy.export.graph.walk import with_bodies

OTHERS = {TensorProto.FLOAT16: "float16", TensorProto.DOUBLE: "float64"}
TYPE_ATTRIBUTES = ("to", "dtype")


def other_weights(model: onnx.ModelProto) -> str | None:
    """Return the type of a graph's weights if it is float16 or float64; None for float32."""
    kinds = {i.data_type for inside in with_bodies(model.graph) for i in inside.initializer if len(i.dims) > 1}
    return next((name for kind, name in OTHERS.items() if kind in kinds), None)


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same graph with every float16 or float64 tensor in float32.

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
