"""Rules for nodes that choose values by their places, repeat them, or put zeros around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.native.ir import Tensor
from qdeploy.native.lowering import Constant, Lowering, Places, UnsupportedError, require_size
from qdeploy.native.move_rules import moved, part, source_of
from qdeploy.native.onnx_graph import Node


def _topk(low: Lowering, node: Node) -> None:
    """The places of the largest values of the only axis that has several, and the values there."""
    source = low.float_tensor(node.inputs[0])
    count, rank = int(low.constant(node.inputs[1]).values.reshape(())), len(source.shape)
    axis = int(node.attributes.get("axis", -1)) % rank
    if source.shape[axis] != source.size or not node.attributes.get("largest", 1):
        raise UnsupportedError(node.kind, "only the largest of one run of values are compiled")
    if not 1 <= count <= source.size:
        raise UnsupportedError(node.kind, f"{count} of {source.size} values")
    shape = tuple(count if i == axis else 1 for i in range(rank))
    flat = low.emit("reshape", [source], Tensor(f"{node.outputs[0]}/flat", (source.size,)))
    places = low.emit("topk", [flat], Tensor(f"{node.outputs[0]}/places", (count,)))
    low.values[node.outputs[0]] = low.emit("pick", [source, places], Tensor(node.outputs[0], shape), axis=axis)
    low.values[node.outputs[1]] = Places(places, axis, shape)


def _gather_elements(low: Lowering, node: Node) -> None:
    """Whole slices at chosen places, as exporters write ``torch.gather`` with an expanded index."""
    source, index = source_of(low, node), low.value(node.inputs[1])
    axis = int(node.attributes.get("axis", 0)) % len(source.shape)
    if not isinstance(index, Places) or index.axis != axis:
        raise UnsupportedError(node.kind, "only whole slices at the places of a TopK are compiled")
    if tuple(index.shape) != (shape := _picked(source, axis, index.tensor.size)):
        raise UnsupportedError(node.kind, f"{list(source.shape)} at {list(index.shape)}, which are no whole slices")
    moved(low, source, node.outputs[0], "pick", shape, [index.tensor], axis=axis)


def _gather(low: Lowering, node: Node) -> None:
    value, index = low.value(node.inputs[0]), low.constant(node.inputs[1]).values
    if isinstance(value, Constant):
        low.values[node.outputs[0]] = Constant(np.take(value.values, index, axis=int(node.attributes.get("axis", 0))))
        return
    source = source_of(low, node)
    axis = int(node.attributes.get("axis", 0)) % len(source.shape)
    shape = (*source.shape[:axis], *index.shape, *source.shape[axis + 1 :])
    flat = index.reshape(-1).astype(np.int64)
    flat = np.where(flat < 0, flat + source.shape[axis], flat)
    if not flat.size or flat.min() < 0 or flat.max() >= source.shape[axis]:
        raise UnsupportedError(node.kind, f"places beyond an axis of {source.shape[axis]}")
    name = f"{node.outputs[0]}/chosen"
    if (flat == flat[0] + np.arange(flat.size)).all():
        part(low, source, name, axis, int(flat[0]), int(flat[0]) + flat.size)
    else:
        places = Tensor(f"{node.outputs[0]}/places", flat.shape, data=flat.astype(np.float32))
        moved(low, source, name, "pick", _picked(source, axis, flat.size), [places], axis=axis)
    moved(low, low.held(name), node.outputs[0], "reshape", shape)


def _picked(source: Tensor, axis: int, count: int) -> tuple[int, ...]:
    return tuple(count if i == axis else side for i, side in enumerate(source.shape))


def _expand(low: Lowering, node: Node) -> None:
    """Repeat a constant, or places; what is computed is repeated by whoever reads it."""
    value, wanted = low.value(node.inputs[0]), low.constant(node.inputs[1]).values.tolist()
    if isinstance(value, Constant):
        repeated = np.broadcast_shapes(value.values.shape, wanted)
        require_size(node.outputs[0], repeated)
        low.values[node.outputs[0]] = Constant(np.broadcast_to(value.values, repeated))
        return
    if isinstance(value, Places):
        low.values[node.outputs[0]] = replace(value, shape=np.broadcast_shapes(value.shape, wanted))
        return
    source = source_of(low, node)
    if np.broadcast_shapes(source.shape, wanted) != source.shape:
        raise UnsupportedError(node.kind, f"{list(source.shape)} to {wanted}: only constants are repeated")
    moved(low, source, node.outputs[0], "reshape", source.shape)


def _pad(low: Lowering, node: Node) -> None:
    """Put zeros, or another number, around: before and behind, axis by axis."""
    mode, fill = node.attributes.get("mode", b"constant"), float(node.attributes.get("value", 0.0))
    pads = _numbers(low, node, 1, "pads")
    if len(node.inputs) > 2 and node.inputs[2]:
        fill = float(low.constant(node.inputs[2]).values.reshape(()))
    source = low.float_tensor(node.inputs[0]) if fill else source_of(low, node)
    rank = len(source.shape)
    axes = _numbers(low, node, 3, "axes") or list(range(rank))
    if mode != b"constant" or min(pads, default=0) < 0 or len(pads) != 2 * len(axes):
        raise UnsupportedError(node.kind, "only a number that is put around is compiled")
    name = node.outputs[0]
    for k, axis in enumerate(a % rank for a in axes):
        sides = [pads[k], source.shape[axis], pads[k + len(axes)]]
        if sides[0] or sides[2]:
            ends = [_filled(source, f"{name}/end{k}{i}", axis, sides[i], fill) for i in (0, 2)]
            parts = [t for t in (ends[0], source, ends[1]) if t.shape[axis]]
            joined = Tensor(f"{name}/{k}", _picked(source, axis, sum(sides)), source.scale, source.zero)
            source = low.emit("concat", parts, joined, axis=axis)
    moved(low, source, name, "reshape", source.shape)


def _numbers(low: Lowering, node: Node, i: int, attribute: str) -> list[int]:
    if len(node.inputs) > i and node.inputs[i]:
        return [int(v) for v in low.constant(node.inputs[i]).values.reshape(-1)]
    return [int(v) for v in node.attributes.get(attribute) or []]


def _filled(like: Tensor, name: str, axis: int, side: int, fill: float) -> Tensor:
    shape = _picked(like, axis, side)
    require_size(name, tuple(max(side, 1) for side in shape))
    data: NDArray[Any] = np.full(shape, like.zero, np.uint8) if like.integer else np.full(shape, fill, np.float32)
    return Tensor(name, shape, like.scale, like.zero, data)


CHOICE_RULES: dict[str, Callable[[Lowering, Node], None]] = {
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Pad": _pad,
    "TopK": _topk,
}
"""How each node is translated, by ONNX's name."""
