"""Passes over a program; each takes one and returns another that gives the same numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from qdeploy.native.check import MOST_TABLES
from qdeploy.native.ir import MOVES, Op, Program, Tensor
from qdeploy.native.simulate import run_op

POINTWISE = ("table", "add", "mul")
"""Kinds on codes that make each value of values at the same place."""
FLOAT_POINTWISE = ("add", "sub", "mul", "div", "unary")
LONGEST_CHAIN = 16
ALL_CODES = np.arange(256, dtype=np.uint8)


def collapse_chains(program: Program) -> Program:
    """Turn everything that is made of one tensor of codes alone, place by place, into one table of 256 entries.

    A GELU on integers (a table for the gate, then a product of the input with its gate) becomes one look-up.
    """
    chains: dict[Tensor, tuple[Tensor, np.ndarray]] = {}
    ops = []
    for op in program.ops:
        made = _chain(op, chains)
        if made is None:
            ops.append(op)
            continue
        root, table = made
        chains[op.output] = made
        ops.append(Op("table", [root], op.output, {"table": table}))
    return without_dead(Program(ops, program.image, *program.outputs))


def _chain(op: Op, chains: dict[Tensor, tuple[Tensor, np.ndarray]]) -> tuple[Tensor, np.ndarray] | None:
    """Return the one tensor that a result is made of, and its 256 results; None if there are several."""
    same_view = op.kind == "reshape" and op.inputs[0].shape == op.output.shape
    if not op.output.integer or not (op.kind in POINTWISE or same_view):
        return None
    sources = [t for t in op.inputs if t.data is None]
    if any(t.data is not None and t.size != 1 for t in op.inputs) or not sources:
        return None
    roots = {chains[t][0] if t in chains else t for t in sources}
    if len(roots) != 1 or any(t.shape != op.output.shape for t in sources):
        return None
    root = roots.pop()
    values = [
        t.data.reshape(-1) if t.data is not None else chains[t][1] if t in chains else ALL_CODES for t in op.inputs
    ]
    flat = [Tensor(t.name, (256 if t.data is None else 1,), t.scale, t.zero) for t in op.inputs]
    entries = Op(op.kind, flat, Tensor(op.output.name, (256,), op.output.scale, op.output.zero), op.attributes)
    return root, run_op(entries, values)


def fuse_clamps(program: Program) -> Program:
    """Let an operator on floats clamp what it makes, where nothing else reads what it made before."""
    readers = program.readers()
    ops: list[Op] = []
    makers: dict[Tensor, Op] = {}
    for op in program.ops:
        source = makers.get(op.inputs[0]) if op.attributes.get("function") == "clamp" else None
        able = source is not None and source.kind in ("conv", "linear", "add", "sub", "mul", "div")
        if source is None or not able or readers[source.output] != 1 or "clamp" in source.attributes:
            ops.append(op)
            makers[op.output] = op
            continue
        fused = Op(source.kind, source.inputs, op.output, {**source.attributes, "clamp": op.attributes["clamp"]})
        ops[ops.index(source)] = fused
        makers[op.output] = fused
    return Program(ops, program.image, *program.outputs)


def quantize_early(program: Program) -> Program:
    """Let values that are moved and then quantized be quantized first: a quarter of the bytes move."""
    readers = program.readers()
    ops: list[Op] = []
    makers: dict[Tensor, Op] = {}
    for op in program.ops:
        move = makers.get(op.inputs[0])
        if op.kind != "quantize" or move is None or move.kind not in MOVES or readers[move.output] != 1:
            ops.append(op)
            makers[op.output] = op
            continue
        source, target = move.inputs[0], op.output
        early = Op("quantize", [source], Tensor(f"{target.name}/early", source.shape, target.scale, target.zero))
        late = Op(move.kind, [early.output], target, move.attributes)
        ops[ops.index(move)] = early
        ops.append(late)
        makers.update({early.output: early, target: late})
    return Program(ops, program.image, *program.outputs)


def tabulate_floats(program: Program) -> Program:
    """Turn what is computed on floats between codes and codes, place by place, into tables.

    A mean that is taken from the image's channels before it is quantized costs one look-up.
    """
    readers = program.readers()
    makers = {op.output: op for op in program.ops}
    ops = [(_tabulated(op, makers, readers) if op.kind == "quantize" else None) or op for op in program.ops]
    return without_dead(Program(ops, program.image, *program.outputs))


def _tabulated(op: Op, makers: dict[Tensor, Op], readers: Counter[Tensor]) -> Op | None:
    """Return a quantization as a table of what goes into the chain before it; None if that is more than a chain."""
    chain, after = [op], op
    while after.kind != "dequantize":
        link = next((t for t in after.inputs if t.data is None), None)
        before = makers.get(link) if link else None
        if before is None or readers[before.output] != 1:
            return None
        if before.kind not in ("dequantize", *FLOAT_POINTWISE) or before.output.shape != op.output.shape:
            return None
        if sum(t.data is None for t in before.inputs) != 1 or len(chain) > LONGEST_CHAIN:
            return None
        chain.insert(0, before)
        after = before
    (source,), shape = after.inputs, op.output.shape
    constants = [_essential(t.data) for o in chain for t in o.inputs if t.data is not None]
    axes = {len(shape) - c.ndim + i for c in constants for i, side in enumerate(c.shape) if side > 1}
    side = shape[max(axes)] if axes else 1
    if len(axes) > 1 or side > MOST_TABLES or source.shape != shape:
        return None
    tables = _entries(chain, side)
    if tables is None:
        return None
    if side == 1:
        return Op("table", [source], op.output, {"table": tables[0]})
    return Op("tables", [source], op.output, {"tables": tables, "axis": axes.pop()})


def _entries(chain: list[Op], side: int) -> np.ndarray | None:
    """Return what a chain makes of all codes at each of ``side`` places: ``[side, 256]``.

    Of values that are not finite C and numpy make other codes: then there is no table.
    """
    values = np.broadcast_to(ALL_CODES[:, None], (256, side))
    for op in chain:
        given = [values if t.data is None else _essential(t.data).reshape(-1) for t in op.inputs]
        flat = [Tensor(t.name, x.shape, t.scale, t.zero) for t, x in zip(op.inputs, given, strict=True)]
        output = Tensor(op.output.name, (256, side), op.output.scale, op.output.zero)
        values = run_op(Op(op.kind, flat, output, op.attributes), given)
        if not np.isfinite(values).all():
            return None
    return np.ascontiguousarray(values.T)


def _essential(values: np.ndarray) -> np.ndarray:
    """Return a constant with a side of one along the axes where it repeats itself."""
    for axis in range(values.ndim):
        first = values.take([0], axis)
        values = first if (values == first).all() else values
    return values


def without_dead(program: Program) -> Program:
    """Leave out what nothing reads."""
    needed = set(program.outputs)
    ops = []
    for op in reversed(program.ops):
        if op.output in needed:
            ops.append(op)
            needed.update(op.inputs)
    return Program(ops[::-1], program.image, *program.outputs)


PASSES: tuple[Callable[[Program], Program], ...] = (
    *(without_dead, collapse_chains, fuse_clamps, quantize_early, tabulate_floats),
)
"""In this order."""
