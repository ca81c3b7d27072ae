"""Shapes of convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qdeploy.native.ir import Tensor
from qdeploy.native.lowering import Lowering, UnsupportedError
from qdeploy.native.onnx_graph import Node


def conv_geometry(
    node: Node, shape: tuple[int, ...], weight: tuple[int, ...]
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Return pads, strides, dilations and groups of a convolution, and the shape of its result, both as of an image.

    One over a line is one over an image of a single row (``as_image``).

    Raises:
        UnsupportedError: If it is not over images, or its numbers do not fit together.
    """
    a, flat = node.attributes, len(shape) == 3
    if len(shape) not in (3, 4) or len(weight) != len(shape):
        raise UnsupportedError(node.kind, f"of {len(shape) - 2} dimensions, where one and two are compiled")
    if flat:
        shape, weight = ((*s[:2], 1, s[2]) for s in (shape, weight))
    strides, dilations = ([1] * flat + list(a.get(name) or [1] * (2 - flat)) for name in ("strides", "dilations"))
    pads = list(a.get("pads") or [0] * (2 if flat else 4))
    pads = [0, pads[0], 0, pads[1]] if flat else pads
    same = a.get("auto_pad", b"NOTSET")
    if same in (b"SAME_UPPER", b"SAME_LOWER"):
        pads = same_pads(shape[2:], weight[2:], strides, dilations, same == b"SAME_UPPER")
    group = int(a.get("group", 1))
    if [len(pads), len(strides), len(dilations)] != [4, 2, 2]:
        raise UnsupportedError(node.kind, f"pads {pads}, strides {strides} and dilations {dilations}")
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


def same_pads(
    sides: Sequence[int], window: Sequence[int], strides: list[int], dilations: list[int], upper: bool
) -> list[int]:
    """Return the pads with which a result has a side for every stride, as ONNX's ``auto_pad`` wants them."""
    before, behind = [], []
    for side, taps, stride, dilation in zip(sides, window, strides, dilations, strict=True):
        total = max((-(-side // max(stride, 1)) - 1) * stride + dilation * (taps - 1) + 1 - side, 0)
        less, more = total // 2, total - total // 2
        before.append(less if upper else more)
        behind.append(more if upper else less)
    return before + behind


def as_image(low: Lowering, tensor: Tensor) -> Tensor:
    """Return a line ``[1, C, N]`` as an image of one row; an image as it is."""
    if len(tensor.shape) != 3:
        return tensor
    shape = (*tensor.shape[:2], 1, tensor.shape[2])
    return low.emit("reshape", [tensor], Tensor(f"{tensor.name}/image", shape, tensor.scale, tensor.zero))


def as_line(low: Lowering, image: Tensor, output: Tensor) -> Tensor:
    """Put an image of one row into the line ``output``, whose shape is set."""
    output.shape = (*image.shape[:2], image.shape[3])
    return low.emit("reshape", [image], output)
