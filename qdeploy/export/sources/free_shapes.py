"""Shapes that are written for one batch, made to be those of any: in Reshape and Resize, and of joined constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qdeploy.export.graph.walk import FreeNames

RECURRENT = [(4, 0), (5, 1), (6, 1)]
REPEATED = {"GridSample": [(1, 0)], "LSTM": RECURRENT, "GRU": RECURRENT, "RNN": RECURRENT}
"""Inputs, and their axes, that must be as many as the images: a grid, lengths and first states."""
Around = tuple[tuple[int, ...], tuple[int, ...]]
"""Axes before the number of images, and behind it."""


def free_shapes(graph: onnx.GraphProto, batch: int, image: str, *, everywhere: bool) -> bool:
    """Let no Reshape say the batch, and repeat constants that are joined to images; tell if anything was changed.

    Args:
        graph: Where.
        batch: The batch that shapes are written for.
        image: The input.
        everywhere: Whether the first axis may hold more than the batch, as where images are cut into windows.
    """
    follows = {image}
    for node in graph.node:
        if follows.intersection(node.input):
            follows.update(node.output)
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    for node in graph.node:
        value = _constant(node, constants)
        if value is not None:
            constants[node.output[0]] = value
    changed, nodes, new = False, [], FreeNames(graph)
    shapes: dict[Around, str] = {}

    def counted(before: tuple[int, ...], after: tuple[int, ...]) -> str:
        return shapes.setdefault((before, after), new(f"qd_counted_{len(shapes)}"))

    for i, node in enumerate(graph.node):
        free = (
            _free_shape(node, constants, None if everywhere else batch)
            if node.input[:1] and node.input[0] in follows
            else None
        )
        if free is not None:
            node.input[1] = new(f"{node.input[1]}_of_{i}")
            graph.initializer.append(numpy_helper.from_array(free, node.input[1]))
            del node.attribute[:]  # a 0 of ours means as it was
            changed = True
        for k, axis in _single(node, constants) if batch == 1 else ():
            name, rank = node.input[k], constants[node.input[k]].ndim
            node.input[k] = new(f"{name}_of_{i}")
            nodes.append(
                helper.make_node("Expand", [name, counted((1,) * axis, (1,) * (rank - 1 - axis))], [node.input[k]])
            )
        sizes = _sizes(node, constants)
        if sizes[:1] == (batch,) and node.input[0] in follows:
            node.input[3] = counted((), sizes[1:])
        nodes.append(node)
    if shapes:
        del graph.node[:]
        graph.node.extend([*_counts(graph, image, shapes, new), *nodes])
    return changed or bool(shapes)


def _single(node: onnx.NodeProto, constants: Mapping[str, NDArray[Any]]) -> list[tuple[int, int]]:
    """Return which inputs of a node are constants for one image that must be as many as the images, and their axes."""
    if node.op_type == "Concat":
        ranks = {k: constants[name].ndim for k, name in enumerate(node.input) if name in constants}
        wanted = [(k, 0) for k, rank in ranks.items() if rank > 1 and _axis(node) % rank]
    else:
        wanted = REPEATED.get(node.op_type, [])
    given = [(k, axis, constants.get(node.input[k])) for k, axis in wanted if k < len(node.input)]
    return [(k, axis) for k, axis, v in given if v is not None and v.ndim > axis and v.shape[axis] == 1]


def _sizes(node: onnx.NodeProto, constants: Mapping[str, NDArray[Any]]) -> tuple[int, ...]:
    """Return the sizes that a Resize says of all axes; none if it says none, or of some axes."""
    if node.op_type != "Resize" or len(node.input) < 4 or any(a.name == "axes" for a in node.attribute):
        return ()
    return tuple(constants[node.input[3]].tolist()) if node.input[3] in constants else ()


def _constant(node: onnx.NodeProto, constants: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:
    """Return a node's value where it is known: a constant, or one that is repeated along axes."""
    if node.op_type == "Constant":
        return next((numpy_helper.to_array(a.t) for a in node.attribute if a.name == "value"), None)
    if node.op_type == "Expand" and all(name in constants for name in node.input):
        value, shape = (constants[name] for name in node.input)
        return np.asarray(value * np.ones(shape.tolist(), value.dtype))
    return None


def _axis(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 0)


def _free_shape(
    node: onnx.NodeProto, constants: Mapping[str, NDArray[Any]], batch: int | None
) -> NDArray[np.int64] | None:
    """Return the shape of a Reshape without its batch; of any number if that is None; None to leave it alone."""
    shape = constants.get(node.input[1]) if node.op_type == "Reshape" else None
    if shape is None or shape.ndim != 1 or not len(shape) or (batch or shape[0]) != shape[0] or shape[0] < 1:
        return None
    if batch is None and (shape == -1).any() and shape[0] != 1:
        return None
    if not shape.all() and any(a.name == "allowzero" and a.i for a in node.attribute):
        return None
    free = shape.astype(np.int64)
    free[0] = -1 if (free != -1).all() else 0
    return free


def _counts(graph: onnx.GraphProto, image: str, shapes: Mapping[Around, str], new: FreeNames) -> list[onnx.NodeProto]:
    """Return nodes that count the images: ``[N, 1, 1]`` to repeat a class token, say."""
    first, shape, count = new("qd_first"), new("qd_shape"), new("qd_count")
    graph.initializer.append(numpy_helper.from_array(np.asarray([0], np.int64), first))
    nodes = [helper.make_node("Shape", [image], [shape]), helper.make_node("Gather", [shape, first], [count])]
    for (before, after), name in shapes.items():
        parts = []
        for values, part in ((before, new(f"{name}_before")), ((), count), (after, new(f"{name}_after"))):
            if values:
                graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.int64), part))
            parts += [part] if values or part == count else []
        nodes.append(helper.make_node("Concat", parts, [name], axis=0))
    return nodes
