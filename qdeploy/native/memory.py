"""The pass that plans the arena: how long each tensor is needed, and where it lies meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.native.ir import Op, Tensor
from qdeploy.native.layout import Layout

ALIGNMENT = 64
SLACK_BYTES = 64
"""At the end of the arena: kernels read a few bytes beyond a tensor, and use none of them."""
IN_PLACE = ("softmax", "table", "tables")
"""Kinds that may write their result over their input."""


@dataclass(frozen=True)
class Arena:
    """Where everything lies."""

    offsets: dict[Tensor, int]
    """Bytes from the arena's begin, of tensors that own memory."""
    scratch: dict[Op, int]
    """The same, of the working memory of an operator."""
    size_bytes: int


@dataclass
class _Block:
    """One piece of memory and the operators during which it is needed."""

    size: int
    first: int
    last: int
    owner: Tensor | Op
    offset: int = -1


def plan_arena(layout: Layout, scratch_bytes: dict[Op, int], reuse: bool = True) -> Arena:
    """Place every tensor and working memory.

    The largest come first, each at the lowest place that is free for as long as it is needed.

    Args:
        layout: The program.
        scratch_bytes: Working memory of the operators that need some.
        reuse: Whether memory is used again; without, every tensor can be read after a run.
    """
    blocks = _blocks(layout, scratch_bytes)
    joined = _joined(layout, blocks) if reuse else {}
    placed: list[_Block] = []
    for block in sorted({id(b): b for b in blocks.values()}.values(), key=lambda b: -b.size):
        others = [b for b in placed if not reuse or (b.first <= block.last and block.first <= b.last)]
        block.offset = _lowest(block.size, others)
        placed.append(block)
    owners: dict[Tensor | Op, int] = {b.owner: b.offset for b in placed}
    owners.update((t, b.offset) for t, b in joined.items())
    size = max((b.offset + b.size for b in placed), default=0) + SLACK_BYTES
    offsets = {o: at for o, at in owners.items() if isinstance(o, Tensor)}
    return Arena(offsets, {o: at for o, at in owners.items() if isinstance(o, Op)}, size)


def _blocks(layout: Layout, scratch_bytes: dict[Op, int]) -> dict[Tensor | Op, _Block]:
    program = layout.program
    blocks: dict[Tensor | Op, _Block] = {}
    for i, op in enumerate(program.ops):
        for t in [op.output, *op.inputs]:
            root, _ = layout.root(t)
            if root.data is None and root is not program.image:
                block = blocks.setdefault(root, _Block(_aligned(root.size_bytes), i, i, root))
                block.last = i
        if scratch_bytes.get(op):
            blocks[op] = _Block(_aligned(scratch_bytes[op]), i, i, op)
    for t in program.outputs:
        blocks[layout.root(t)[0]].last = len(program.ops)
    return blocks


def _joined(layout: Layout, blocks: dict[Tensor | Op, _Block]) -> dict[Tensor, _Block]:
    """Let results take the place of an input that is needed no longer; blocks become one."""
    joined: dict[Tensor, _Block] = {}
    for i, op in enumerate(layout.program.ops):
        if op.kind not in IN_PLACE:
            continue
        for source in op.inputs:
            root, offset = layout.root(source)
            mine, own = blocks.get(root), blocks.get(op.output)
            if mine is None or own is None or mine is own or mine.last != i or offset or source is not op.inputs[0]:
                continue
            same = source.shape == op.output.shape and source.integer == op.output.integer
            if same and layout.orders[source] == layout.orders[op.output] and root.size == source.size:
                mine.last = own.last
                blocks[op.output] = mine
                joined[op.output] = mine
    return joined


def _lowest(size: int, others: list[_Block]) -> int:
    at = 0
    for other in sorted(others, key=lambda b: b.offset):
        if at + size <= other.offset:
            break
        at = max(at, other.offset + other.size)
    return at


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
