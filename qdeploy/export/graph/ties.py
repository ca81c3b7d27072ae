"""Images whose answer depends on rounding: a ``TopK`` of the graph chooses between nearly equal values."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qdeploy.export.graph.inner_outputs import open_with_outputs

TIE = 1e-4
"""Largest margin of a tie, in standard deviations of the values to pick from; folding moves 5.9's by up to 3e-5."""
BATCH = 64


def without_ties(model: onnx.ModelProto, pixels_NSSC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Leave out the images for which a ``TopK`` of the graph is undecided: no two runtimes need agree on them.

    All are given back if none is decided: then the values are all equal, and runtimes pick by position.
    """
    picks = [node for node in model.graph.node if node.op_type == "TopK"]
    if not picks:
        return pixels_NSSC
    session = open_with_outputs(model, [name for node in picks for name in (node.input[0], node.output[0])])
    clear = np.ones(len(pixels_NSSC), bool)
    for node in picks:
        for start in range(0, len(pixels_NSSC), BATCH):
            batch = slice(start, start + BATCH)
            values, picked = session.run([node.input[0], node.output[0]], {"image": pixels_NSSC[batch]})
            margin = _margin(node, values, picked)
            if margin.size % len(clear[batch]):  # not picked image by image
                continue
            each = margin.reshape(len(clear[batch]), -1)  # an image may pick several times, as experts of its tokens
            clear[batch] &= ~(each <= TIE).any(axis=1)  # NaN is no tie: parity must see such an image
    return pixels_NSSC[clear] if clear.any() else pixels_NSSC


def _margin(node: onnx.NodeProto, values: NDArray[Any], picked: NDArray[Any]) -> NDArray[np.float64]:
    """Return by how many standard deviations the last value picked and the first left out differ."""
    given = {a.name: a.i for a in node.attribute}
    axis = given.get("axis", -1)
    size, count = values.shape[axis], picked.shape[axis]
    if count == size:
        return np.full(len(values), np.inf)
    first = size - count if given.get("largest", 1) else count  # of the upper part, in rising order
    ordered = np.sort(values.astype(np.float64), axis=axis)
    return (ordered.take(first, axis) - ordered.take(first - 1, axis)) / np.maximum(ordered.std(axis), 1e-30)
