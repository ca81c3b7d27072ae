"""What ONNX Runtime overlooks in a graph and onnx does not: nodes in any order, weights given twice, unread inputs."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import numpy as np
import onnx
from onnx import numpy_helper

from qdeploy.core.errors import InputError
from qdeploy.export.graph.walk import read_by, with_bodies


def tidy(model: onnx.ModelProto) -> None:
    """Bring a graph into the order that ONNX asks for, as ONNX Runtime understands it.

    Raises:
        InputError: If its nodes go round in a circle, or a weight has two values.
    """
    for graph in with_bodies(model.graph):
        _keep_one(graph)
        _sort(graph)
    _drop_unread_inputs(model.graph)


def _keep_one(graph: onnx.GraphProto) -> None:
    """Of weights with one name keep one. ONNX Runtime takes the first of some, and the last of others."""
    kept: dict[str, onnx.TensorProto] = {}
    for tensor in graph.initializer:
        other = kept.setdefault(tensor.name, tensor)
        if other is not tensor and not np.array_equal(numpy_helper.to_array(other), numpy_helper.to_array(tensor)):
            raise InputError(f"the weight '{tensor.name}' is there twice, with other values", fix="export it again")
    if len(kept) < len(graph.initializer):
        copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept.values()]
        del graph.initializer[:]
        graph.initializer.extend(copies)


def _sort(graph: onnx.GraphProto) -> None:
    """Put every node behind those whose tensors it reads, unless all are."""
    nodes = list(graph.node)
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    before = {i: {maker[name] for name in read_by(node) if name in maker} for i, node in enumerate(nodes)}
    if all(max(makers, default=-1) < i for i, makers in before.items()):
        return
    try:
        order = list(TopologicalSorter(before).static_order())
    except CycleError as error:
        node = nodes[error.args[1][0]]
        raise InputError(
            f"the node '{node.name or node.op_type}' reads what is made of its own output", fix="export the file again"
        ) from error
    copies = [onnx.NodeProto.FromString(nodes[i].SerializeToString()) for i in order]
    del graph.node[:]
    graph.node.extend(copies)


def _drop_unread_inputs(graph: onnx.GraphProto) -> None:
    """Drop inputs that nothing reads, beside one that is read: they change no answer."""
    read = {name for node in graph.node for name in read_by(node)} | {o.name for o in graph.output}
    kept = [i for i in graph.input if i.name in read]
    if kept and len(kept) < len(graph.input):
        del graph.input[:]
        graph.input.extend(kept)
