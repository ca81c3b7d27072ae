"""Shapes of convolutions."""

from __future__ import annotations

from typing import Any

from qdeploy.native.lowering import UnsupportedError
from qdeploy.native.onnx_graph import Node


def conv_geometry(
    node: Node, shape: tuple[int, ...], weight: tuple[int, ...]
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Return pads, strides, dilations and groups of a convolution, and the shape of its result.

    Raises:
        UnsupportedError: If it is not over images, or its numbers do not fit together.
    """
    a = node.attributes
    if len(shape) != 4 or a.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise UnsupportedError(node.kind, "only two dimensions with explicit pads are compiled")
    pads, strides = list(a.get("pads") or [0] * 4), list(a.get("strides") or [1, 1])
    dilations, group = list(a.get("dilations") or [1, 1]), int(a.get("group", 1))
    if weight[1] * group != shape[1] or weight[0] % group or min(*pads, *(v - 1 for v in strides + dilations)) < 0:
        raise UnsupportedError(node.kind, f"weights {list(weight)} in {group} groups do not fit {list(shape)}")
    sides = [
        (shape[2 + i] + pads[i] + pads[2 + i] - dilations[i] * (weight[2 + i] - 1) - 1) // strides[i] + 1
        for i in (0, 1)
    ]
    if min(sides) < 1:
        raise UnsupportedError(node.kind, f"its result would be {sides}")
    geometry = {"pads": pads, "strides": strides, "dilations": dilations, "group": group}
    return geometry, (1, weight[0], *sides)
