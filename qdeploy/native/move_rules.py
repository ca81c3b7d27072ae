"""Rules for nodes that only move or choose values; on codes they give codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from qdeploy.native.ir import Tensor
from qdeploy.native.lowering import Constant, Lowering, Places, UnsupportedError, View
from qdeploy.native.onnx_graph import Node


def source_of(low: Lowering, node: Node) -> Tensor:
    """Return a node's first input: its codes where it has them, else its floats."""
    value = low.value(node.inputs[0])
    if isinstance(value, View):
        return low.codes_of(value)
    return low.float_tensor(node.inputs[0])


def moved(
    low: Lowering,
    source: Tensor,
    name: str,
    kind: str,
    shape: tuple[int, ...],
    places: Sequence[Tensor] = (),
    **attributes: Any,
) -> None:
    """Emit a move, of what is at some places; what is made of codes is a view of codes."""
    output = Tensor(f"{name}/codes" if source.integer else name, shape, source.scale, source.zero)
    made = low.emit(kind, [source, *places], output, **attributes)
    low.values[name] = View(made, source.scale, source.zero) if source.scale is not None else made


def _reshape(low: Lowering, node: Node) -> None:
    source = source_of(low, node)
    wanted = [int(v) for v in low.constant(node.inputs[1]).values]
    keeps_zero = bool(node.attributes.get("allowzero", 0))
    sides = [source.shape[i] if v == 0 and not keeps_zero else v for i, v in enumerate(wanted)]
    if -1 in sides:
        sides[sides.index(-1)] = source.size // -prod(sides)
    if prod(sides) != source.size:
        raise UnsupportedError(node.kind, f"{list(source.shape)} cannot be {wanted} for one image")
    moved(low, source, node.outputs[0], "reshape", tuple(sides))


def _flatten(low: Lowering, node: Node) -> None:
    source = source_of(low, node)
    axis = int(node.attributes.get("axis", 1))
    shape = (prod(source.shape[:axis]), prod(source.shape[axis:]))
    moved(low, source, node.outputs[0], "reshape", shape)


def axes_of(low: Lowering, node: Node, rank: int) -> list[int]:
    """Return a node's axes, from its second input or its attribute; none if it names none."""
    given = low.constant(node.inputs[1]).values.tolist() if len(node.inputs) > 1 else node.attributes.get("axes", [])
    return sorted(int(a) % rank for a in given)


def _squeeze(low: Lowering, node: Node) -> None:
    value = low.value(node.inputs[0])
    if isinstance(value, Constant):
        given = tuple(axes_of(low, node, value.values.ndim))
        low.values[node.outputs[0]] = Constant(np.squeeze(value.values, given or None))
        return
    source = source_of(low, node)
    axes = axes_of(low, node, len(source.shape)) or [i for i, side in enumerate(source.shape) if side == 1]
    shape = tuple(side for i, side in enumerate(source.shape) if i not in axes)
    moved(low, source, node.outputs[0], "reshape", shape)


def _unsqueeze(low: Lowering, node: Node) -> None:
    value = low.value(node.inputs[0])
    if isinstance(value, Constant):
        axes = low.constant(node.inputs[1]).values.tolist()
        low.values[node.outputs[0]] = Constant(np.expand_dims(value.values, tuple(axes)))
        return
    if isinstance(value, Places):
        _unsqueeze_places(low, node, value)
        return
    source = source_of(low, node)
    rank = len(source.shape) + low.constant(node.inputs[1]).values.size
    shape = list(source.shape)
    for axis in axes_of(low, node, rank):
        shape.insert(axis, 1)
    moved(low, source, node.outputs[0], "reshape", tuple(shape))


def _unsqueeze_places(low: Lowering, node: Node, value: Places) -> None:
    """Places along an axis stay so: the axis counts on behind new ones."""
    shape, axis = list(value.shape), value.axis
    for new in axes_of(low, node, len(shape) + low.constant(node.inputs[1]).values.size):
        shape.insert(new, 1)
        axis += new <= axis
    low.values[node.outputs[0]] = replace(value, axis=axis, shape=tuple(shape))


def _transpose(low: Lowering, node: Node) -> None:
    source = source_of(low, node)
    perm = tuple(node.attributes.get("perm") or reversed(range(len(source.shape))))
    moved(low, source, node.outputs[0], "transpose", tuple(source.shape[i] for i in perm), perm=perm)


def part(low: Lowering, source: Tensor, name: str, axis: int, start: int, stop: int) -> None:
    """Emit a part of one axis."""
    _parts(low, source, name, [slice(start, stop) if i == axis else slice(None) for i in range(len(source.shape))])


def _parts(low: Lowering, source: Tensor, name: str, wanted: list[slice]) -> None:
    spans = tuple(one.indices(side) for one, side in zip(wanted, source.shape, strict=True))
    shape = tuple(len(range(*span)) for span in spans)
    if min(shape, default=0) < 1 or any(step < 1 for _, _, step in spans):
        raise UnsupportedError(
            "Slice", f"{list(source.shape)} to {list(shape)}: only parts in ascending order are compiled"
        )
    moved(low, source, name, "slice", shape, spans=spans)


def _split(low: Lowering, node: Node) -> None:
    source = source_of(low, node)
    axis = int(node.attributes.get("axis", 0)) % len(source.shape)
    count = len(node.outputs)
    given = low.constant(node.inputs[1]).values if len(node.inputs) > 1 else node.attributes.get("split")
    side = -(-source.shape[axis] // count)
    sizes = [int(v) for v in given] if given is not None else [side] * (count - 1)
    ends = np.cumsum([0, *sizes])
    if given is None:
        ends = np.append(ends, source.shape[axis])
    for name, start, stop in zip(node.outputs, ends[:-1], ends[1:], strict=True):
        part(low, source, name, axis, int(start), int(stop))


def _slice(low: Lowering, node: Node) -> None:
    source = source_of(low, node)
    starts, ends = (low.constant(node.inputs[i]).values for i in (1, 2))
    axes = low.constant(node.inputs[3]).values if len(node.inputs) > 3 else np.arange(starts.size)
    steps = low.constant(node.inputs[4]).values if len(node.inputs) > 4 else np.ones(starts.size, np.int64)
    wanted = [slice(None)] * len(source.shape)
    for axis, start, stop, step in zip(axes, starts, ends, steps, strict=True):
        wanted[int(axis) % len(source.shape)] = slice(int(start), int(stop), int(step))
    _parts(low, source, node.outputs[0], wanted)


def _identity(low: Lowering, node: Node) -> None:
    low.values[node.outputs[0]] = low.value(node.inputs[0])


def _shape(low: Lowering, node: Node) -> None:
    value = low.value(node.inputs[0])
    shape = value.values.shape if isinstance(value, Constant) else source_of(low, node).shape
    start, stop = node.attributes.get("start", 0), node.attributes.get("end")
    low.values[node.outputs[0]] = Constant(np.array(shape, np.int64)[start:stop])


def _constant(low: Lowering, node: Node) -> None:
    low.values[node.outputs[0]] = Constant(np.asarray(node.attributes["value"]))


MOVE_RULES: dict[str, Callable[[Lowering, Node], None]] = {
    "Constant": _constant,
    "Dropout": _identity,
    "Flatten": _flatten,
    "Identity": _identity,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""How each node is translated, by ONNX's name."""
