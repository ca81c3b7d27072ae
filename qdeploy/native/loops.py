"""Loops over tensors in memory: as few as possible, the innermost last."""

from __future__ import annotations

from typing import Any

from qdeploy.native.ir import Op, Tensor
from qdeploy.native.layout import Layout
from qdeploy.native.lowering import UnsupportedError

PAIR_LOOPS = 4
COPY_LOOPS = 5


def pair_loops(layout: Layout, op: Op) -> dict[str, list[int]]:
    """Return the loops of an operator of two inputs: sides, and the strides of both, 0 along what is repeated."""
    strides = [_repeated(layout, t, op.output) for t in op.inputs]
    sides, (a, b) = _merged(op, layout.orders[op.output], strides, PAIR_LOOPS)
    return {"sides": sides, "a": a, "b": b}


def copy_loops(layout: Layout, op: Op) -> dict[str, Any]:
    """Return the loops of a copy: sides of the result, and the strides of the source."""
    source = layout.strides(op.inputs[0])
    steps = op.attributes.get("steps", (1,) * len(source))
    walked = [stride * step for stride, step in zip(source, steps, strict=True)]
    sides, (strides,) = _merged(op, layout.orders[op.output], [walked], COPY_LOOPS)
    return {"sides": sides, "strides": strides}


def _repeated(layout: Layout, tensor: Tensor, output: Tensor) -> list[int]:
    own = layout.strides(tensor)
    missing = len(output.shape) - len(own)
    return [0] * missing + [0 if side == 1 else step for side, step in zip(tensor.shape, own, strict=True)]


def _merged(op: Op, order: tuple[int, ...], strides: list[list[int]], most: int) -> tuple[list[int], list[list[int]]]:
    """Join neighbouring loops that walk on alike in all inputs."""
    loops: list[tuple[int, list[int]]] = []
    for axis in order:
        side, steps = op.output.shape[axis], [s[axis] for s in strides]
        if side == 1:
            continue
        if loops and all(outer == inner * side for outer, inner in zip(loops[-1][1], steps, strict=True)):
            loops[-1] = (loops[-1][0] * side, steps)
        else:
            loops.append((side, steps))
    if len(loops) > most:
        raise UnsupportedError(op.kind, f"its shapes need {len(loops)} loops, {most} are compiled")
    loops = [(1, [0] * len(strides))] * (most - len(loops)) + loops
    return [side for side, _ in loops], [[steps[i] for _, steps in loops] for i in range(len(strides))]
