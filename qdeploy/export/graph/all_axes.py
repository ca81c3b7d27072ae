"""Resize and Pad in the one form that ONNX Runtime moves transposes over: with a value for every axis.

ONNX Runtime 1.32 moves a Transpose over one that names two axes only (opset 18) as if it named all: it then refuses
the graph, or fails while it runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qdeploy.export.graph.walk import FreeNames, is_standard

AXES = 4


def name_all_axes(model: onnx.ModelProto) -> None:
    """Let each Resize and Pad of images, whose values are known, name all axes.

    Those of tensors that have not 4 axes, or of which that is not known, stay as they are.
    """
    graph = model.graph
    if not any(is_standard(node, "Resize", "Pad") for node in graph.node):
        return
    images = _images(model)
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    names, nodes = FreeNames(graph), list[onnx.NodeProto]()
    for node in graph.node:
        of_images = bool(node.input) and node.input[0] in images
        if of_images and is_standard(node, "Resize"):
            nodes += _resize(node, graph, constants, names)
        elif of_images and is_standard(node, "Pad"):
            _pad(node, graph, constants, names)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _images(model: onnx.ModelProto) -> set[str]:
    """Return the tensors of 4 axes."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # whatever onnx's inference raises from C++
        return set()
    shapes = ((v.name, v.type.tensor_type) for v in (*graph.input, *graph.value_info, *graph.output))
    return {name for name, kind in shapes if kind.HasField("shape") and len(kind.shape.dim) == AXES}


def _pad(node: onnx.NodeProto, graph: onnx.GraphProto, constants: dict[str, NDArray[Any]], names: FreeNames) -> None:
    if len(node.input) < 4 or not {node.input[1], node.input[3]} <= set(constants):
        return
    axes, pads = constants[node.input[3]] % AXES, constants[node.input[1]].reshape(2, -1)
    if sorted(axes) != [2, 3]:
        return
    whole = np.zeros((2, AXES), np.int64)
    whole[:, axes] = pads
    node.input[1] = _constant(graph, names, f"{node.input[1]}_all_axes", whole.reshape(-1))
    del node.input[3:]


def _resize(
    node: onnx.NodeProto, graph: onnx.GraphProto, constants: dict[str, NDArray[Any]], names: FreeNames
) -> list[onnx.NodeProto]:
    """Let a Resize read values for all axes; gives the nodes that compute them: sizes need the batch."""
    axes = [axis % AXES for a in node.attribute if a.name == "axes" for axis in a.ints]
    given = [i for i in (2, 3) if len(node.input) > i and node.input[i]]
    keeps = any(a.name == "keep_aspect_ratio_policy" and a.s != b"stretch" for a in node.attribute)
    if sorted(axes) != [2, 3] or keeps or any(node.input[1:2]) or len(given) != 1:
        return []
    (place,) = given
    old = node.input[place]
    if old not in constants:
        return []
    values = constants[old][np.argsort(axes)]
    kept = [a for a in node.attribute if a.name != "axes"]
    del node.attribute[:]
    node.attribute.extend(kept)
    if place == 2:
        node.input[2] = _constant(graph, names, f"{old}_all_axes", np.concatenate([np.ones(2, np.float32), values]))
        return []
    sides = _constant(graph, names, f"{old}_sides", values.astype(np.int64))
    first, node.input[3] = names(f"{old}_first"), names(f"{old}_all_axes")
    return [
        helper.make_node("Shape", [node.input[0]], [first], names(f"{node.name}/Shape"), start=0, end=2),
        helper.make_node("Concat", [first, sides], [node.input[3]], names(f"{node.name}/Concat"), axis=0),
    ]


def _constant(graph: onnx.GraphProto, names: FreeNames, wanted: str, values: NDArray[Any]) -> str:
    name = names(wanted)
    graph.initializer.append(numpy_helper.from_array(values, name))
    return name
