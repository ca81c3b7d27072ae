"""Graphs that take one image and answer it without an axis for the batch: that axis is kept instead.

Such a graph ends in ``squeeze(0)``, ``x[0]``, ``reshape(-1)`` or the like, somewhere before its answer. What is made of
it here is a guess that its answers have to prove; see ``batches``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qdeploy.export.graph.walk import FreeNames, bodies

DEFAULT_AXIS = {"Softmax": -1, "LogSoftmax": -1, "TopK": -1, "ArgMax": 0, "Split": 0, "Gather": 0, "Concat": 0}
"""Operators that work along one axis."""
Shape = tuple[int, ...]


def with_batch_kept(model: onnx.ModelProto, image: str) -> onnx.ModelProto | None:
    """Return a graph in which no node drops the batch of one; None if none does, or it cannot be followed.

    Args:
        model: A graph that takes one image, with shapes that are constants.
        image: Its input.
    """
    copy = onnx.shape_inference.infer_shapes(model)
    rewrite = _Rewrite(copy.graph, image)
    for node in copy.graph.node:
        if not rewrite.take(node):
            return None
    if not rewrite.changed:
        return None
    for output in copy.graph.output:
        if output.name in rewrite.without:
            output.type.tensor_type.ClearField("shape")
    return copy


class _Rewrite:
    """Follows the image through a graph, node by node."""

    def __init__(self, graph: onnx.GraphProto, image: str) -> None:
        self.graph, self.free = graph, FreeNames(graph)
        self.constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        self.shapes = _shapes(graph)
        self.follows = {image}
        self.without: set[str] = set()
        """Tensors that had no axis for the batch, and have one now."""
        self.changed = False

    def take(self, node: onnx.NodeProto) -> bool:
        """Rewrite a node if it drops the batch, or reads what had none; tells whether it is understood."""
        if not self.follows.intersection(node.input):
            return not any(bodies(node))
        self.follows.update(node.output)
        if not self.without.intersection(node.input):
            if self._drops(node):
                self.without.add(node.output[0])
                self.changed = True
            return True
        return not any(bodies(node)) and self._read(node)

    def _drops(self, node: onnx.NodeProto) -> bool:
        """Rewrite a node that drops the batch."""
        shape = self.shapes.get(node.input[0], ())
        if not shape or shape[0] != 1 or node.input[0] not in self.follows:
            return False
        kind = node.op_type
        if kind == "Gather" and _int(node, "axis", 0) == 0 and self._value(node, 1, ()) in (0, -1):
            _become(node, "Identity", node.input[0])
            return True
        after = self.shapes.get(node.output[0], ())
        if kind == "Reshape" and after and (len(after) == 1 or after[0] != 1):
            self._set(node, 1, [-1, *after])
            return True
        if kind == "Squeeze" or (kind.startswith("Reduce") and not _int(node, "keepdims", 1)):
            ones = [i for i, n in enumerate(shape) if n == 1] if kind == "Squeeze" else list(range(len(shape)))
            return self._without_first(node, ones, len(shape))
        return False

    def _without_first(self, node: onnx.NodeProto, every: list[int], rank: int) -> bool:
        given = self._axes(node)
        axes = [a % rank for a in given] if given is not None else every
        if 0 not in axes:
            return False
        rest = [a for a in axes if a]
        if rest:
            self._set_axes(node, rest)
        else:
            _become(node, "Identity", node.input[0])
        return True

    def _read(self, node: onnx.NodeProto) -> bool:
        """Rewrite a node that reads what has one axis more now."""
        kind, before = node.op_type, self.shapes.get(node.output[0])
        if before is None:
            return False
        if kind in ("Reshape", "Flatten", "Unsqueeze") and before[:1] == (1,):
            node.op_type = "Reshape"
            del node.attribute[:]
            self._set(node, 1, [-1, *before[1:]])
            return True
        if kind == "Reshape":
            self._set(node, 1, [-1, *before])
        elif kind in ("Unsqueeze", "Squeeze") or kind.startswith("Reduce"):
            given = self._axes(node)
            axes = given if given is not None else range(len(self.shapes[node.input[0]]))
            self._set_axes(node, [a + 1 if a >= 0 else a for a in axes])
        elif kind in DEFAULT_AXIS:
            axis = _int(node, "axis", DEFAULT_AXIS[kind])
            _set_int(node, "axis", axis + 1 if axis >= 0 else axis)
        elif kind in ("Flatten", "Transpose", "Expand"):
            return False
        ranks = [len(self.shapes.get(i, ())) + (i in self.without) for i in node.input if i]
        if max(ranks) > len(before) or kind.startswith("Reduce"):
            self.without.update(node.output)
        return True

    def _axes(self, node: onnx.NodeProto) -> list[int] | None:
        for attribute in node.attribute:
            if attribute.name == "axes":
                return list(attribute.ints)
        return [int(a) for a in self.constants[node.input[1]].reshape(-1)] if self._known(node, 1) else None

    def _set_axes(self, node: onnx.NodeProto, axes: list[int]) -> None:
        for attribute in node.attribute:
            if attribute.name == "axes":
                attribute.ints[:] = axes
                return
        self._set(node, 1, axes)

    def _set(self, node: onnx.NodeProto, place: int, values: list[int]) -> None:
        name = self.free(f"{node.output[0]}_{node.op_type}")
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
        node.input[:] = [*node.input[:place], name]

    def _known(self, node: onnx.NodeProto, place: int) -> bool:
        return len(node.input) > place and node.input[place] in self.constants

    def _value(self, node: onnx.NodeProto, place: int, shape: Shape) -> int | None:
        value = self.constants[node.input[place]] if self._known(node, place) else None
        return int(value) if value is not None and value.shape == shape else None


def _shapes(graph: onnx.GraphProto) -> Mapping[str, Shape]:
    known = {i.name: tuple(i.dims) for i in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            known[value.name] = tuple(d.dim_value for d in dims)
    return known


def _become(node: onnx.NodeProto, kind: str, source: str) -> None:
    node.op_type = kind
    node.input[:] = [source]
    del node.attribute[:]


def _int(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _set_int(node: onnx.NodeProto, name: str, value: int) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
