"""What an ONNX graph lets one see of its answer without a gradient.

A network that ends in average pooling and a linear layer gives a class activation map (Zhou et al., "Learning Deep
Features for Discriminative Localization", CVPR 2016): the linear layer applied to the features of each position. It
equals Grad-CAM there (Selvaraju et al., ICCV 2017). A ``TopK`` over tokens tells which are kept, and the weights of an
attention what it looks at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.native.onnx_graph import Graph, Node

Floats = NDArray[np.float64]

_SAME_VALUES = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "Identity", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Dropout")
)
"""Operators behind which a vector of channels is the same up to rounding and its shape."""
_OF_CONSTANTS = frozenset(("Constant", "Identity", "Cast", "Transpose", "DequantizeLinear"))
"""Operators through which a constant is read."""


@dataclass(frozen=True)
class LinearEnd:
    """``logits = weights mean(features) + bias``."""

    features: str
    """Name of the tensor ``[B, C, H, W]`` that is pooled."""
    weights: Floats | None
    """``[K, C]``; None where the features have a channel for each class and there is no layer behind the pooling."""
    bias: Floats
    """``[K]``, or ``[1]`` without a layer."""


@dataclass(frozen=True)
class Picks:
    """A ``TopK`` over tokens."""

    scores: str
    """Name of the tensor ``[B, N]``."""
    indices: str
    """Name of the tensor ``[B, k]``, the best first."""


class Reader:
    """Answers questions about a graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._makers = {name: node for node in graph.nodes for name in node.outputs}

    def linear_end(self, logits: str) -> LinearEnd | None:
        """Find the average pooling and the linear layer before the logits; None if the graph does not end so."""
        bias: Floats = np.zeros(1)
        node = self._maker(logits)
        if node is not None and node.kind == "Add":
            name, constant = self._with_constant(node)
            if name is None or constant is None:
                return None
            bias, node = constant.reshape(-1), self._maker(name)
        if node is None:
            return None
        if (features := self._pooled(node)) is not None:  # the last convolution has a channel for each class
            return None if bias.any() else LinearEnd(features, None, bias)
        found = self._linear(node)
        pooling = None if found is None else self._maker(node.inputs[0])
        pooled = None if pooling is None else self._pooled(pooling)
        if found is None or pooled is None:
            return None
        weights, own = found
        return LinearEnd(pooled, weights, np.broadcast_to(bias + own, len(weights)))

    def picks(self) -> list[Picks]:
        """Return what every ``TopK`` of the graph reads and gives."""
        return [Picks(n.inputs[0], n.outputs[1]) for n in self._graph.nodes if n.kind == "TopK" and len(n.outputs) > 1]

    def softmaxes(self) -> list[str]:
        """Return the outputs of every softmax that is no answer of the model, in the order of the graph."""
        answers = {name for output in self._graph.outputs for name in self._same_before(output)}
        return [n.outputs[0] for n in self._graph.nodes if n.kind == "Softmax" and n.outputs[0] not in answers]

    def context_parts(self) -> list[str]:
        """Return the products whose means over the tokens are the context vectors of separable attention."""
        means = [n for n in self._graph.nodes if n.kind == "ReduceMean" and self._axes(n) == {2}]
        makers = [self._maker(n.inputs[0]) for n in means]
        return [node.outputs[0] for node in makers if node is not None and node.kind == "Mul"]

    def _maker(self, name: str) -> Node | None:
        """Return the operator that computes a tensor's values."""
        node = self._makers.get(name)
        while node is not None and node.kind in _SAME_VALUES:
            node = self._makers.get(node.inputs[0])
        return node

    def _same_before(self, name: str) -> Iterable[str]:
        yield name
        node = self._makers.get(name)
        while node is not None and node.kind in _SAME_VALUES:
            yield node.inputs[0]
            node = self._makers.get(node.inputs[0])

    def _pooled(self, node: Node) -> str | None:
        """Return what an average pooling over height and width reads."""
        over_all = node.kind == "GlobalAveragePool" or (node.kind == "ReduceMean" and self._axes(node) == {2, 3})
        return node.inputs[0] if over_all else None

    def _axes(self, node: Node) -> set[int]:
        """Return the axes of a mean; those of a tensor of four where they are counted from the end."""
        given: Any = node.attributes.get("axes")
        if given is None and len(node.inputs) > 1 and node.inputs[1] in self._graph.constants:
            given = self._graph.constants[node.inputs[1]].reshape(-1).tolist()
        return {int(axis) % 4 for axis in given or ()}

    def _linear(self, node: Node) -> tuple[Floats, Floats] | None:
        """Return weights ``[K, C]`` and bias of a linear layer on channels."""
        weights = self._constant(node.inputs[1]) if node.kind in ("Gemm", "MatMul", "Conv") else None
        if weights is None:
            return None
        bias = self._constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else np.zeros(1)
        if bias is None:
            return None
        if node.kind == "Conv":
            dense = weights.shape[2:] == (1, 1) and node.attributes.get("group", 1) == 1
            return (weights[:, :, 0, 0], bias) if dense else None
        if weights.ndim != 2 or node.attributes.get("transA", 0):
            return None
        weights = weights if node.attributes.get("transB", 0) else weights.T
        return node.attributes.get("alpha", 1.0) * weights, node.attributes.get("beta", 1.0) * bias.reshape(-1)

    def _with_constant(self, node: Node) -> tuple[str | None, Floats | None]:
        """Return the input of an addition that is computed and the one that is constant."""
        for computed, other in (node.inputs, reversed(node.inputs)):
            if (constant := self._constant(other)) is not None:
                return computed, constant
        return None, None

    def _constant(self, name: str) -> Floats | None:
        """Return a constant's values; of a quantized one those that it stands for."""
        if name in self._graph.constants:
            return self._graph.constants[name].astype(np.float64)
        node = self._makers.get(name)
        if node is None or node.kind not in _OF_CONSTANTS:  # else the search would go through the whole graph
            return None
        if node.kind == "Constant":
            value = node.attributes.get("value")
            return None if value is None else np.asarray(value, np.float64)
        values = [self._constant(each) for each in node.inputs]
        if any(v is None for v in values):
            return None
        known = [v for v in values if v is not None]
        if node.kind in ("Identity", "Cast"):
            return known[0]
        if node.kind == "Transpose":
            return known[0].transpose(node.attributes.get("perm"))
        return _dequantized(known, node.attributes.get("axis", 1))


def _dequantized(values: list[Floats], axis: int) -> Floats:
    quantized, scale, zero = values[0], values[1], values[2] if len(values) > 2 else np.zeros(1)
    shape = [1] * quantized.ndim
    if scale.size > 1:
        shape[axis] = scale.size
        return (quantized - (zero.reshape(shape) if zero.size > 1 else zero.reshape(-1)[0])) * scale.reshape(shape)
    return (quantized - zero.reshape(-1)[0]) * scale.reshape(-1)[0]
