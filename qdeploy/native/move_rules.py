"""Rules for nodes that only move or choose values; on codes they give codes."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from qdeploy.native.ir import Tensor
from qdeploy.native.lowering import Constant, Lowering, UnsupportedError, View
from qdeploy.native.onnx_graph import Node


def _source(low: Lowering, node: Node) -> Tensor:
    value = low.value(node.inputs[0])
    if isinstance(value, View):
        return low.codes_of(value)
    return low.float_tensor(node.inputs[0])


def _moved(low: Lowering, source: Tensor, name: str, kind: str, shape: tuple[int, ...], **attributes: Any) -> None:
    """Emit a move; what is made of codes is a view of codes."""
    made = low.emit(kind, [source], Tensor(f"{name}/codes" if source.integer else name, shape), **attributes)
    made.scale, made.zero = source.scale, source.zero
    low.values[name] = View(made, source.scale, source.zero) if source.scale is not None else made


def _reshape(low: Lowering, node: Node) -> None:
    source = _source(low, node)
    wanted = [int(v) for v in low.constant(node.inputs[1]).values]
    keeps_zero = bool(node.attributes.get("allowzero", 0))
    sides = [source.shape[i] if v == 0 and not keeps_zero else v for i, v in enumerate(wanted)]
    if -1 in sides:
        sides[sides.index(-1)] = source.size // -prod(sides)
    if prod(sides) != source.size:
        raise UnsupportedError(node.kind, f"{list(source.shape)} cannot be {wanted} for one image")
    _moved(low, source, node.outputs[0], "reshape", tuple(sides))


def _flatten(low: Lowering, node: Node) -> None:
    source = _source(low, node)
    axis = int(node.attributes.get("axis", 1))
    shape = (prod(source.shape[:axis]), prod(source.shape[axis:]))
    _moved(low, source, node.outputs[0], "reshape", shape)


def _axes(low: Lowering, node: Node, rank: int) -> list[int]:
    given = low.constant(node.inputs[1]).values.tolist() if len(node.inputs) > 1 else node.attributes.get("axes", [])
    return sorted(int(a) % rank for a in given)


def _squeeze(low: Lowering, node: Node) -> None:
    value = low.value(node.inputs[0])
    if isinstance(value, Constant):
        given = tuple(_axes(low, node, value.values.ndim))
        low.values[node.outputs[0]] = Constant(np.squeeze(value.values, given or None))
        return
    source = _source(low, node)
    axes = _axes(low, node, len(source.shape)) or [i for i, side in enumerate(source.shape) if side == 1]
    shape = tuple(side for i, side in enumerate(source.shape) if i not in axes)
    _moved(low, source, node.outputs[0], "reshape", shape)


def _unsqueeze(low: Lowering, node: Node) -> None:
    value = low.value(node.inputs[0])
    if isinstance(value, Constant):
        axes = low.constant(node.inputs[1]).values.tolist()
        low.values[node.outputs[0]] = Constant(np.expand_dims(value.values, tuple(axes)))
        return
    source = _source(low, node)
    rank = len(source.shape) + low.constant(node.inputs[1]).values.size
    shape = list(source.shape)
    for axis in _axes(low, node, rank):
        shape.insert(axis, 1)
    _moved(low, source, node.outputs[0], "reshape", tuple(shape))


def _transpose(low: Lowering, node: Node) -> None:
    source = _source(low, node)
    perm = tuple(node.attributes.get("perm") or reversed(range(len(source.shape))))
    _moved(low, source, node.outputs[0], "transpose", tuple(source.shape[i] for i in perm), perm=perm)


def _part(low: Lowering, source: Tensor, name: str, axis: int, start: int, stop: int) -> None:
    spans = tuple((start, stop) if i == axis else (0, side) for i, side in enumerate(source.shape))
    _moved(low, source, name, "slice", tuple(b - a for a, b in spans), spans=spans)


def _split(low: Lowering, node: Node) -> None:
    source = _source(low, node)
    axis = int(node.attributes.get("axis", 0)) % len(source.shape)
    count = len(node.outputs)
    given = low.constant(node.inputs[1]).values if len(node.inputs) > 1 else node.attributes.get("split")
    side = -(-source.shape[axis] // count)
    sizes = [int(v) for v in given] if given is not None else [side] * (count - 1)
    ends = np.cumsum([0, *sizes])
    if given is None:
        ends = np.append(ends, source.shape[axis])
    for name, start, stop in zip(node.outputs, ends[:-1], ends[1:], strict=True):
        _part(low, source, name, axis, int(start), int(stop))


def _slice(low: Lowering, node: Node) -> None:
    source = _source(low, node)
    starts, ends = (low.constant(node.inputs[i]).values for i in (1, 2))
    axes = low.constant(node.inputs[3]).values if len(node.inputs) > 3 else np.arange(starts.size)
    steps = low.constant(node.inputs[4]).values if len(node.inputs) > 4 else np.ones(starts.size, np.int64)
    if starts.size != 1 or steps[0] != 1:
        raise UnsupportedError(node.kind, "only one axis at a time, in steps of one, is compiled")
    axis = int(axes[0]) % len(source.shape)
    start, stop, _ = slice(int(starts[0]), int(ends[0])).indices(source.shape[axis])
    _part(low, source, node.outputs[0], axis, start, stop)


def _maxpool(low: Lowering, node: Node) -> None:
    source, a = _source(low, node), node.attributes
    kernel, rank = list(a["kernel_shape"]), len(source.shape)
    pads, strides = list(a.get("pads") or [0] * 4), list(a.get("strides") or [1, 1])
    if rank != 4 or a.get("ceil_mode") or set(a.get("dilations") or [1]) != {1} or len(node.outputs) > 1:
        raise UnsupportedError(node.kind, "only plain pooling over images is compiled")
    sides = [(source.shape[2 + i] + pads[i] + pads[2 + i] - kernel[i]) // strides[i] + 1 for i in (0, 1)]
    shape = (1, source.shape[1], *sides)
    _moved(low, source, node.outputs[0], "maxpool", shape, kernel=kernel, pads=pads, strides=strides)


def _identity(low: Lowering, node: Node) -> None:
    low.values[node.outputs[0]] = low.value(node.inputs[0])


def _shape(low: Lowering, node: Node) -> None:
    value = low.value(node.inputs[0])
    shape = value.values.shape if isinstance(value, Constant) else _source(low, node).shape
    start, stop = node.attributes.get("start", 0), node.attributes.get("end")
    low.values[node.outputs[0]] = Constant(np.array(shape, np.int64)[start:stop])


def _constant(low: Lowering, node: Node) -> None:
    low.values[node.outputs[0]] = Constant(np.asarray(node.attributes["value"]))


MOVE_RULES: dict[str, Callable[[Lowering, Node], None]] = {
    "Constant": _constant,
    "Dropout": _identity,
    "Flatten": _flatten,
    "Identity": _identity,
    "MaxPool": _maxpool,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""How each node is translated, by ONNX's name."""
