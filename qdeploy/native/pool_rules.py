"""Rules for pooling: the largest value or the mean of windows, of rows, of whole images."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from qdeploy.native.geometry import same_pads
from qdeploy.native.ir import Tensor
from qdeploy.native.lowering import Lowering, UnsupportedError, require_size
from qdeploy.native.move_rules import axes_of, moved, source_of
from qdeploy.native.onnx_graph import Node


def _window(node: Node, shape: tuple[int, ...]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return kernel, strides, pads as far as windows reach, and the sides of the result.

    Raises:
        UnsupportedError: If it is not over images, or a window would hold no value.
    """
    a = node.attributes
    kernel, strides = list(a["kernel_shape"]), list(a.get("strides") or [1, 1])
    pads, dilations = list(a.get("pads") or [0] * 4), a.get("dilations") or [1, 1]
    if len(shape) != 4 or set(dilations) != {1} or [len(kernel), len(strides), len(pads)] != [2, 2, 4]:
        raise UnsupportedError(node.kind, "only plain pooling over images is compiled")
    same = a.get("auto_pad", b"NOTSET")
    if same in (b"SAME_UPPER", b"SAME_LOWER"):
        pads = same_pads(shape[2:], kernel, strides, [1, 1], same == b"SAME_UPPER")
    if min(*kernel, *strides) < 1 or min(pads) < 0 or any(pads[i] >= kernel[i % 2] for i in range(4)):
        raise UnsupportedError(node.kind, f"windows of {kernel} with pads {pads} and strides {strides}")
    sides = []
    for i in (0, 1):
        room = shape[2 + i] + pads[i] + pads[2 + i] - kernel[i]
        side = room // strides[i] + 1
        if a.get("ceil_mode") and room % strides[i] and side * strides[i] < shape[2 + i] + pads[i]:
            side += 1  # one more window, which begins inside and goes beyond the end
        if room < 0 and side < 1:
            raise UnsupportedError(node.kind, f"windows of {kernel} over {list(shape[2:])}")
        pads[2 + i] = max((side - 1) * strides[i] + kernel[i] - shape[2 + i] - pads[i], 0)
        sides.append(side)
    return kernel, strides, pads, sides


def _maxpool(low: Lowering, node: Node) -> None:
    source = source_of(low, node)
    if len(node.outputs) > 1 and node.outputs[1]:
        raise UnsupportedError(node.kind, "the places of the largest are not compiled")
    kernel, strides, pads, sides = _window(node, source.shape)
    shape = (1, source.shape[1], *sides)
    moved(low, source, node.outputs[0], "maxpool", shape, kernel=kernel, pads=pads, strides=strides)


def _averagepool(low: Lowering, node: Node) -> None:
    """A convolution of ones, then a product with one over the number of values in each window."""
    source = low.float_tensor(node.inputs[0])
    counted = list(node.attributes.get("pads") or [0] * 4) if node.attributes.get("count_include_pad") else [0] * 4
    kernel, strides, pads, sides = _window(node, source.shape)
    channels, name = source.shape[1], node.outputs[0]
    sums = Tensor(f"{name}/sums", (1, channels, *sides))
    require_size(name, (channels, *kernel))
    weight, bias = np.ones((channels, 1, *kernel), np.float32), np.zeros(channels, np.float32)
    geometry = {"pads": pads, "strides": strides, "dilations": [1, 1], "group": channels}
    low.emit("conv", [source], sums, weight=weight, bias=bias, **geometry)
    counts = []
    for i in (0, 1):
        starts = np.arange(sides[i]) * strides[i] - pads[i]
        ends = np.minimum(starts + kernel[i], source.shape[2 + i] + counted[2 + i])
        counts.append(ends - np.maximum(starts, -counted[i]))
    share = (np.float32(1) / np.outer(*counts).astype(np.float32))[None, None]
    share = share[:, :, :1, :1] if (share == share.flat[0]).all() else share
    constant = Tensor(f"{name}/share", share.shape, data=share)
    low.values[name] = low.emit("mul", [sums, constant], Tensor(name, sums.shape))


def _max(low: Lowering, node: Node) -> None:
    """The largest along the last axis or axes: one window of all of them."""
    source = source_of(low, node)
    rank, pooled = len(source.shape), node.kind == "GlobalMaxPool"
    axes = list(range(2, rank)) if pooled else axes_of(low, node, rank) or list(range(rank))
    if axes != list(range(rank - len(axes), rank)):
        raise UnsupportedError(node.kind, f"over the axes {axes}: only the last ones are compiled")
    keep = pooled or bool(node.attributes.get("keepdims", 1))
    kept = source.shape[: rank - len(axes)]
    rows, columns = prod(kept), prod(source.shape[len(kept) :])
    name, ones = node.outputs[0], [1, 1]
    moved(low, source, f"{name}/rows", "reshape", (1, 1, rows, columns))
    window = {"kernel": [1, columns], "pads": [0] * 4, "strides": ones}
    moved(low, low.held(f"{name}/rows"), f"{name}/most", "maxpool", (1, 1, rows, 1), (), **window)
    moved(low, low.held(f"{name}/most"), name, "reshape", (*kept, *([1] * len(axes) if keep else [])))


POOL_RULES: dict[str, Callable[[Lowering, Node], None]] = {
    "AveragePool": _averagepool,
    "GlobalMaxPool": _max,
    "MaxPool": _maxpool,
    "ReduceMax": _max,
}
"""How each node is translated, by ONNX's name."""
