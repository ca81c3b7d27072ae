"""Graphs that were exported as for training: they draw random numbers, or normalise by the batch that they see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from onnx import numpy_helper

from qdeploy.core.errors import InputError
from qdeploy.export.graph.walk import all_nodes, is_standard, known_tensors, leading_to

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


def require_no_chance(model: onnx.ModelProto, names: Sequence[str], file: Path) -> None:
    """Refuse a graph in which some tensors depend on random numbers, however small these are."""
    known = known_tensors(model.graph)
    drawing = {name: next((n for n in leading_to(model.graph, [name]) if _draws(n, known)), None) for name in names}
    node = next((n for n in drawing.values() if n is not None), None)
    if node is None:
        return
    free = " or ".join(f"`output={name}`" for name, drawn in drawing.items() if drawn is None)
    raise InputError(
        f"{file} answers the same image differently each time: {node.op_type} '{node.name or node.output[0]}' draws "
        "random numbers",
        fix=f"{FIX}; or give {free}, which depends on none" if free else FIX,
    )


def _draws(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> bool:
    """Tell whether a node's values are chance; those of a Dropout in training mode with a ratio of 0 are not."""
    if not is_standard(node, "Dropout"):
        return is_standard(node, *RANDOM)
    ratio, training = (known.get(node.input[i]) if len(node.input) > i else None for i in (1, 2))
    return training is not None and _is_true(training) and (ratio is None or _is_true(ratio))


def _is_true(tensor: onnx.TensorProto) -> bool:
    return bool(numpy_helper.to_array(tensor).any())
