"""Images whose answer hangs on a rounding error: a graph that picks its largest values may pick others."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from qdeploy.export.tap import open_with_outputs

TIE = 1e-4
"""Of the standard deviation of the values to pick from; folding moves those of 5.9 by up to 3e-5 of it."""
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
            clear[batch] &= _decided(node, values, picked)
    return pixels_NSSC[clear] if clear.any() else pixels_NSSC


def _decided(node: onnx.NodeProto, values: NDArray[np.float32], picked: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell for which images the last value picked and the first left out differ by more than rounding."""
    given = {a.name: a.i for a in node.attribute}
    axis = given.get("axis", -1)
    size, count = values.shape[axis], picked.shape[axis]
    if count == size:
        return np.ones(len(values), bool)
    first = size - count if given.get("largest", 1) else count  # of the upper part, in rising order
    ordered = np.sort(values, axis=axis)
    margin = ordered.take(first, axis) - ordered.take(first - 1, axis)
    return (margin > TIE * values.std(axis)).reshape(len(values), -1).all(axis=1)
