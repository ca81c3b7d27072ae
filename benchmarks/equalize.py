"""Cross-layer equalisation of a float graph: channels get like ranges, the function stays the same.

A convolution's output channel divided by ``s``, and the weights that read it multiplied by ``s``, compute the same
through everything positively homogeneous (``f(s x) = s f(x)`` for ``s > 0``) that lies between. ``s = sqrt(r1 / r2)``
makes both weights' ranges of that channel ``sqrt(r1 r2)``. Source: Nagel et al. 2019, "Data-Free Quantization Through
Weight Equalization and Bias Correction", 4.1.

GELU, SiLU and a clamp such as ReLU6 are not homogeneous, and an Add, a Concat or a second reader would need the same
scale elsewhere: what they separate is not touched.

Array names: O output channels, I input channels of a group, C channels between two convolutions.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool")
"""Operators on each channel alone with ``f(s x) = s f(x)``."""
SWEEPS = 50
"""Most rounds over all pairs: in a chain a pair's scale changes its neighbours'."""
SETTLED = 1e-3
"""Largest change of a scale in the last round."""

Weights = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two convolutions with nothing but homogeneous operators between."""

    first: str
    """The first one's weight, ``[C, I, ...]``."""
    bias: str
    """The first one's bias, ``[C]``; empty without."""
    second: str
    """The second one's weight, ``[O, C / groups, ...]``."""
    groups: int
    """Of the second; equal to C for a depthwise one."""


def equalize(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Give a copy with equalised weights, and the number of pairs that were equalised.

    Args:
        model: A float graph whose BatchNorms are folded; it is not changed.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    pairs = find_pairs(copy.graph)
    names = {name for pair in pairs for name in (pair.first, pair.bias, pair.second) if name}
    stored = {i.name: i for i in copy.graph.initializer if i.name in names}
    weights = {name: onnx.numpy_helper.to_array(i).astype(np.float64) for name, i in stored.items()}
    for _ in range(SWEEPS):
        if max((_equalise(pair, weights) for pair in pairs), default=0.0) < SETTLED:
            break
    for name, initializer in stored.items():
        initializer.CopyFrom(onnx.numpy_helper.from_array(weights[name].astype(np.float32), name))
    return copy, len(pairs)


def find_pairs(graph: onnx.GraphProto) -> list[Pair]:
    """Give the pairs in the order of their first convolution."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in (*graph.input, *graph.output))
    own = {i.name for i in graph.initializer if uses[i.name] == 1 and i.data_type == onnx.TensorProto.FLOAT}
    pairs = []
    for first in graph.node:
        second = _next_convolution(first, readers, uses) if first.op_type == "Conv" else None
        if second is not None and own.issuperset((*first.input[1:], second.input[1])):
            groups = next((a.i for a in second.attribute if a.name == "group"), 1)
            bias = first.input[2] if len(first.input) > 2 else ""
            pairs.append(Pair(first=first.input[1], bias=bias, second=second.input[1], groups=groups))
    return pairs


def _next_convolution(
    first: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]], uses: Counter[str]
) -> onnx.NodeProto | None:
    """Follow the only reader from operator to operator up to a convolution."""
    node = first
    while len(node.output) == 1 and uses[node.output[0]] == 1:
        (after,) = readers.get(node.output[0], [None])
        if after is None or after.input[0] != node.output[0]:
            return None
        if after.op_type == "Conv":
            return after
        if after.op_type not in HOMOGENEOUS:
            return None
        node = after
    return None


def _equalise(pair: Pair, weights: Weights) -> float:
    """Scale one pair in place; gives the largest change of a scale."""
    first, second = weights[pair.first], weights[pair.second]
    c = len(first)
    grouped = second.reshape(pair.groups, -1, c // pair.groups, second[0, 0].size)
    range_1 = np.abs(first).reshape(c, -1).max(axis=1)
    range_2 = np.abs(grouped).max(axis=(1, 3)).reshape(c)
    alive = (range_1 > 0) & (range_2 > 0)
    scale = np.sqrt(np.divide(range_1, range_2, out=np.ones(c), where=alive))
    weights[pair.first] = first / scale.reshape(c, *[1] * (first.ndim - 1))
    if pair.bias:
        weights[pair.bias] = weights[pair.bias] / scale
    weights[pair.second] = (grouped * scale.reshape(pair.groups, 1, -1, 1)).reshape(second.shape)
    return float(np.abs(scale - 1).max())
