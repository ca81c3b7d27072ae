"""Graphs that were exported as for training: they draw random numbers, or normalise by the batch that they see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from onnx import numpy_helper

from qdeploy.core.errors import InputError
from qdeploy.export.graph.walk import all_nodes, bodies, is_standard, read_by, with_bodies

RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
FIX = "export it in evaluation mode, after `model.eval()`, without random operators"


def require_evaluation(model: onnx.ModelProto, file: Path) -> None:
    """Refuse a BatchNorm that computes with the statistics of its batch."""
    for node in all_nodes(model):
        if is_standard(node, "BatchNormalization") and any(a.name == "training_mode" and a.i for a in node.attribute):
            raise InputError(
                f"what {file} answers for an image depends on the others in its batch: BatchNormalization "
                f"'{node.name or node.output[0]}' is in training mode",
                fix="export it in evaluation mode, after `model.eval()`",
            )


def require_no_chance(model: onnx.ModelProto, names: Iterable[str], file: Path) -> None:
    """Refuse a graph in which some tensors depend on random numbers, however small these are."""
    constants = ((n.output[0], a.t) for n in all_nodes(model) if is_standard(n, "Constant") for a in n.attribute)
    weights = ((t.name, t) for g in with_bodies(model.graph) for t in g.initializer)
    yes = {name for name, tensor in (*weights, *constants) if _is_true(tensor)}
    for node in _leading_to(model.graph, names):
        for inner in (node, *(n for body in bodies(node) for g in with_bodies(body) for n in g.node)):
            training = is_standard(inner, "Dropout") and len(inner.input) > 2 and inner.input[2] in yes
            if training or is_standard(inner, *RANDOM):
                raise InputError(
                    f"{file} answers the same image differently each time: {inner.op_type} "
                    f"'{inner.name or inner.output[0]}' draws random numbers",
                    fix=FIX,
                )


def _is_true(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type == onnx.TensorProto.BOOL and bool(numpy_helper.to_array(tensor).all())


def _leading_to(graph: onnx.GraphProto, names: Iterable[str]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that some tensors depend on, the last first."""
    needed = set(names)
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed |= read_by(node)
            yield node
