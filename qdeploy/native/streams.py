"""The pass that lets operators run row by row, so that what lies between them is never there as a whole.

A row is one step along the outermost axis in memory: a row of pixels of an image, one matrix of a batch. Of each
tensor inside a stream only the rows are kept that the next operator still needs.
"""

from __future__ import annotations

from math import prod

from qdeploy.native.ir import Op, Program, Tensor
from qdeploy.native.layout import ELEMENTWISE, Layout

WORTH_BYTES = 8192
"""Tensors between operators that are smaller than this together stay as they are."""
LEAST_ROW_BYTES = 64
MAX_STAGES = 16
"""``QD_MAX_STAGES`` in ``c/kernels.h``."""
ROWS_ALONE = ("softmax", "layernorm")
"""Kinds on floats that make each run along the last axis of itself."""


def rows_of(layout: Layout, tensor: Tensor) -> tuple[int, int]:
    """Return the axis that is outermost in memory, and its side; -1 and 1 for a tensor of one value."""
    return next(((i, tensor.shape[i]) for i in layout.orders[tensor] if tensor.shape[i] > 1), (-1, 1))


def with_streams(layout: Layout) -> Layout:
    """Join operators into streams where that keeps memory small.

    A stream is one operator of kind ``stream``; its attribute ``stages`` holds the operators in their order, each
    reading what the one before makes, ``links`` holds the input by which each does so, and ``copies`` the copies of
    other inputs that are made row by row as well.
    """
    readers = _readers(layout)
    taken: set[Op] = set()
    joined: dict[Op, Op] = {}
    for op in layout.program.ops:
        if op in taken or _link(layout, op) is None:
            continue
        chain = [op]
        while len(chain) < MAX_STAGES - 1:
            after = _next(layout, chain[-1], readers)
            if after is None or after in taken:
                break
            chain.append(after)
        between = sum(o.output.size_bytes for o in chain[:-1])
        if len(chain) > 1 and between >= WORTH_BYTES:
            joined[chain[-1]] = _stream(layout, chain, readers)
            taken.update(chain, joined[chain[-1]].attributes["copies"].values())
    ops = [joined.get(op, op) for op in layout.program.ops if op in joined or op not in taken]
    inside = {layout.root(op.output)[0] for op in taken if op not in joined}
    ops = [op for op in ops if op.kind != "view" or layout.root(op.output)[0] not in inside]
    return Layout(Program(ops, layout.program.image, *layout.program.outputs), layout.orders, layout.shared)


def _readers(layout: Layout) -> dict[Tensor, list[tuple[Op, Tensor]]]:
    """Return who reads the memory of each tensor, and as what; an output of the program is read by nobody's hand."""
    found: dict[Tensor, list[tuple[Op, Tensor]]] = {}
    for op in layout.program.ops:
        for tensor in op.inputs if op.kind != "view" else ():
            found.setdefault(layout.root(tensor)[0], []).append((op, tensor))
    for tensor in layout.program.outputs:
        root = layout.root(tensor)[0]
        found.setdefault(root, []).extend([(Op("output", [tensor], tensor), tensor)] * 2)
    return found


def _next(layout: Layout, op: Op, readers: dict[Tensor, list[tuple[Op, Tensor]]]) -> Op | None:
    """Return the only reader of what an operator makes, if it can take that row by row."""
    reads = readers.get(op.output, [])
    if len(reads) != 1:
        return None
    (after, tensor), made = reads[0], op.output
    whole = layout.root(tensor) == (made, 0) and tensor.size == made.size
    same = whole and rows_of(layout, tensor)[1] == rows_of(layout, made)[1]
    return after if same and _link(layout, after) is tensor else None


def _link(layout: Layout, op: Op) -> Tensor | None:
    """Return the input that an operator can take row by row, making its result so; None if it cannot."""
    sources = [t for t in op.inputs if t.data is None]
    if not sources:
        return None
    link = sources[0]
    axis, rows = rows_of(layout, op.output)
    if rows == 1 or op.output.size_bytes // rows < LEAST_ROW_BYTES or layout.root(op.output) != (op.output, 0):
        return None
    if op.kind == "conv":
        rowwise = not op.output.integer and axis == 2 and rows_of(layout, link)[0] == 2
    elif op.kind in ELEMENTWISE:
        rowwise = len(sources) == 1 and link.shape == op.output.shape and _constants_repeat(op, axis)
    elif op.kind == "matmul":
        batched = all(rows_of(layout, t)[1] == rows == prod(t.shape[:-2]) for t in op.inputs)
        rowwise = not op.output.integer and batched and len(sources) == 2
    else:
        rowwise = op.kind in ROWS_ALONE and axis != len(op.output.shape) - 1
    return link if rowwise else None


def _constants_repeat(op: Op, axis: int) -> bool:
    """Tell whether constants, and tables, are the same for all rows."""
    if op.attributes.get("axis") == axis:
        return False
    rank = len(op.output.shape)
    for t in op.inputs:
        at = axis - (rank - len(t.shape))
        if t.data is not None and at >= 0 and t.shape[at] != 1:
            return False
    return True


def _stream(layout: Layout, chain: list[Op], readers: dict[Tensor, list[tuple[Op, Tensor]]]) -> Op:
    links = [_link(layout, op) for op in chain]
    copies = {op.output: op for op in layout.program.ops if _copies_rows(layout, op, readers)}
    inside = {op.output for op in chain[:-1]}
    others = [t for op, link in zip(chain, links, strict=True) for t in op.inputs if t is not link]
    used = {t: copies[t] for t in others if t in copies}
    inputs = [links[0], *(used[t].inputs[0] if t in used else t for t in others if t not in inside)]
    stages = {"stages": chain, "links": links, "copies": used}
    return Op("stream", [t for t in inputs if t is not None], chain[-1].output, stages)


def _copies_rows(layout: Layout, op: Op, readers: dict[Tensor, list[tuple[Op, Tensor]]]) -> bool:
    """Tell whether an operator is a copy for one matrix product, which could be made as it is needed."""
    moves = op.attributes.get("offset") or set(op.attributes.get("steps", ())) - {1}
    if op.kind != "copy" or moves or len(readers.get(op.output, [])) != 1:
        return False
    (reader, tensor), source = readers[op.output][0], op.inputs[0]
    batches = {prod(t.shape[:-2]) for t in (tensor, source)} | {rows_of(layout, t)[1] for t in (tensor, source)}
    return reader.kind == "matmul" and tensor is op.output and len(batches) == 1
