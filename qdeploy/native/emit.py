"""C from a program: parameters as constants, weights as one blob, and one function that calls the kernels in turn."""

from __future__ import annotations

from qdeploy.native.calls import CALLS
from qdeploy.native.flash import code_bytes
from qdeploy.native.ir import Op, Program
from qdeploy.native.layout import Layout, lay_out
from qdeploy.native.lowering import UnsupportedError
from qdeploy.native.memory import plan_arena
from qdeploy.native.pack import is_depthwise, product_bytes, taps, widened_bytes, window
from qdeploy.native.stages import stages_of
from qdeploy.native.streams import with_streams
from qdeploy.native.writer import Source, Writer

LARGEST_ARENA = 1 << 30


def emit(program: Program, reuse: bool = True, prefix: str = "") -> Source:
    """Write the C of a program.

    Args:
        program: After the passes.
        reuse: Whether memory is used again; without, every tensor can be read after a run, and nothing is streamed.
        prefix: What the names of the constants begin with, and the function's behind ``qdeploy_native_``.

    Raises:
        UnsupportedError: If a kernel does not take a shape, or the arena would be too large.
    """
    return _written(program, reuse, prefix).source()


def memory_needed(program: Program) -> tuple[int, int, int]:
    """Return the bytes of RAM, of constants and of a Cortex-M's code that a program's C needs, without writing it.

    Raises:
        UnsupportedError: As ``emit`` does.
    """
    writer = _written(program, texts=False)
    constants = writer.constant_bytes + len(writer.blob)
    return writer.arena.size_bytes, constants, code_bytes("\n".join((*writer.constants, *writer.calls)))


def _written(program: Program, reuse: bool = True, prefix: str = "", texts: bool = True) -> Writer:
    layout = lay_out(program)
    if reuse:
        layout = with_streams(layout)
    scratch = {op: _scratch(layout, op) for op in layout.program.ops}
    arena = plan_arena(layout, scratch, reuse)
    if arena.size_bytes > LARGEST_ARENA:
        raise UnsupportedError("graph", f"it would need {arena.size_bytes:,} bytes of working memory")
    writer = Writer(layout, arena, CALLS, prefix, texts)
    for op in layout.program.ops:
        writer.call(op)
    return writer


def _scratch(layout: Layout, op: Op) -> int:
    """Return the bytes of working memory that an operator's kernel needs."""
    if op.kind == "stream":
        return stages_of(layout, op)[1]
    if op.kind == "matmul" and op.output.integer:
        return product_bytes(op.output.shape[-2], op.output.shape[-1], op.inputs[0].shape[-1])
    if op.kind not in ("conv", "linear"):
        return 0
    fields, size = window(op), taps(op)
    row = fields["padded_width"] * fields["channels"]
    bare = (fields["padded_height"], fields["padded_width"]) == (fields["height"], fields["width"])
    if not op.output.integer:
        return 0 if bare else ((size["rows"] - 1) * size["dilation_y"] + 1) * row * 4
    padded = 0 if bare else fields["padded_height"] * row + 64
    return padded + (0 if is_depthwise(op) else widened_bytes(op))
