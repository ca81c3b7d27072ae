"""The temperature in a graph: one multiplication between the logits and their softmax."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qdeploy.export.graph.walk import is_standard

NODE = "confidence/Temperature"
FACTOR, SCALED = "confidence_inverse_temperature", "confidence_scaled_logits"


def with_temperature(model: onnx.ModelProto, temperature: float) -> onnx.ModelProto:
    """Return a graph whose ``probabilities`` are ``softmax(logits / temperature)``; its ``logits`` stay as they are.

    A temperature that the graph has already is replaced; 1 leaves none.
    """
    plain = without_temperature(model)
    if temperature == 1.0:
        return plain
    copy = onnx.ModelProto()
    copy.CopyFrom(plain)
    place, softmax = _softmax(copy.graph)
    node = helper.make_node("Mul", [softmax.input[0], FACTOR], [SCALED], NODE)
    softmax.input[0] = SCALED
    copy.graph.node.insert(place, node)
    copy.graph.initializer.append(numpy_helper.from_array(np.asarray(1 / temperature, np.float32), FACTOR))
    return copy


def without_temperature(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph whose ``probabilities`` are the softmax of its ``logits``; the same one if they are."""
    graph = model.graph
    if not any(node.name == NODE for node in graph.node):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    node = next(n for n in graph.node if n.name == NODE)
    _, softmax = _softmax(graph)
    softmax.input[0] = node.input[0]
    graph.node.remove(node)
    for tensors, name in ((graph.initializer, FACTOR), (graph.value_info, SCALED)):
        for tensor in [t for t in tensors if t.name == name]:
            tensors.remove(tensor)
    return copy


def _softmax(graph: onnx.GraphProto) -> tuple[int, onnx.NodeProto]:
    """Return the last node, which makes the probabilities, and its place."""
    return next((i, n) for i, n in enumerate(graph.node) if is_standard(n, "Softmax") and "probabilities" in n.output)
