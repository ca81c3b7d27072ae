"""How large a graph is with its weights, wherever they are, before they are read."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto

from qdeploy.export.graph.walk import all_nodes, all_tensors

OPEN_ENDED = frozenset(
    """Loop Scan If Expand ConstantOfShape Tile Range Resize Upsample Pad OneHot CenterCropPad ConvTranspose MaxUnpool
    AffineGrid GridSample Col2Im SequenceMap SplitToSequence ConcatFromSequence RandomNormal RandomUniform Multinomial
    EyeLike NonZero Compress Einsum GatherND ScatterND TfIdfVectorizer MelWeightMatrix HannWindow HammingWindow
    BlackmanWindow DFT STFT""".split()  # noqa: SIM905
)
"""Operators that take sizes or numbers of rounds from values."""
GROWING = frozenset({"Concat"})
MAX_GROWING = 2000
SIZES = frozenset({"pads", "kernel_shape", "output_padding", "output_shape", "strides", "blocksize", "dilations"})
MAX_ATTRIBUTE = 512
FREE = 64
MAX_ELEMENTS = 1 << 26
"""256 MB of float32."""
MAX_BYTES = 2**31 - 1
"""What one protobuf message, and so one ONNX file, can hold."""


def outside_bytes(model: onnx.ModelProto) -> int:
    """Return how many bytes a model has in other files."""
    return sum(_bytes(t) for t in all_tensors(model) if t.data_location == TensorProto.EXTERNAL)


def needs_trial(model: onnx.ModelProto) -> bool:
    """Tell whether a graph may make tensors whose size no weight and no input has, so that running it may never end.

    Of the others the sizes are those that the shapes say: with one image of 64 x 64 none may exceed ``MAX_ELEMENTS``.
    """
    if model.functions or any(n.op_type in OPEN_ENDED or _widens(n) for n in all_nodes(model)):
        return True
    doubled = sum(n.op_type in GROWING for n in all_nodes(model))
    return doubled > MAX_GROWING or _largest(model) > MAX_ELEMENTS


def _widens(node: onnx.NodeProto) -> bool:
    """Tell whether an attribute of a layer is a number that no usual one has: pads, kernels, sizes."""
    return any(abs(v) > MAX_ATTRIBUTE for a in node.attribute if a.name in SIZES for v in (a.i, *a.ints))


def _largest(model: onnx.ModelProto) -> int:
    """Return the elements of the largest tensor whose shape can be said, free dimensions as ``FREE``."""
    try:
        shapes = onnx.shape_inference.infer_shapes(model).graph.value_info
    except Exception:  # whatever onnx's inference raises from C++
        return MAX_ELEMENTS + 1
    sizes = ([d.dim_value or FREE for d in v.type.tensor_type.shape.dim] for v in shapes)
    return max((math.prod(dims) for dims in sizes), default=0)


def _bytes(tensor: TensorProto) -> int:
    length = next((e.value for e in tensor.external_data if e.key == "length"), "")
    if length.isdigit():
        return int(length)
    width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(np.prod(tensor.dims, dtype=np.int64)) * int(width)
