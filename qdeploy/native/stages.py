"""C of streams: each operator as a function of one row, and the table by which ``qd_stream`` calls them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qdeploy.native.convolution_calls import conv_f32_struct
from qdeploy.native.ir import Op, Tensor
from qdeploy.native.layout import Layout
from qdeploy.native.pack import taps, window
from qdeploy.native.streams import rows_of

if TYPE_CHECKING:
    from qdeploy.native.writer import Writer

ALIGNMENT = 64
IN_PLACE = ("softmax", "table", "tables")
"""Kinds that may write a row over the one they read."""


@dataclass
class Stage:
    """One operator of a stream; the fields of ``qd_stage``."""

    op: Op | None
    """None: a copy of the stream's source, which the first operator needs with borders."""
    rows: int
    source_rows: int
    row_bytes: int
    """Of the values of a row of the result."""
    window: int = 1
    dilation: int = 1
    stride: int = 1
    top: int = 0
    kept: int = 0
    """Rows of the result that are kept; 0: all, where the stream's result lies."""
    row: int = 0
    """Bytes of a kept row, with its borders."""
    begin: int = 0
    place: int = 0
    copy: Op | None = None
    """Of another input, made for every row."""
    copy_place: int = 0


def stages_of(layout: Layout, op: Op) -> tuple[list[Stage], int]:
    """Return the stages of a stream, and the bytes of all kept rows.

    Where an operator has borders, one row of zeros lies at the begin: what an image has above and below.
    """
    stages, windows = [], []
    for link, made in zip(op.attributes["links"], op.attributes["stages"], strict=True):
        rows, source_rows = rows_of(layout, made.output)[1], rows_of(layout, link)[1]
        stage = Stage(made, rows, source_rows, made.output.size_bytes // rows)
        if made.kind == "conv":
            fields, size = window(made), taps(made)
            stage.window, stage.dilation = size["rows"], size["dilation_y"]
            stage.stride, stage.top = fields["stride_y"], fields["top"]
            windows.append((fields["left"] * fields["channels"] * 4, fields["padded_width"] * fields["channels"] * 4))
        else:
            windows.append((0, link.size_bytes // source_rows))
        stage.copy = next((c for t, c in op.attributes["copies"].items() if t in made.inputs), None)
        stages.append(stage)
    bare = stages[0].top == 0 and windows[0][1] * stages[0].source_rows == op.inputs[0].size_bytes
    if not bare:
        rows = stages[0].source_rows
        stages.insert(0, Stage(None, rows, rows, op.inputs[0].size_bytes // rows))
        windows.insert(0, (0, 0))
    return stages, _placed(stages, windows)


def _placed(stages: list[Stage], windows: list[tuple[int, int]]) -> int:
    """Give every stage but the last its place; ``windows`` are left border and bytes of the rows that each reads."""
    total = max((_aligned(row) for stage, (_, row) in zip(stages, windows, strict=True) if stage.window > 1), default=0)
    for i, (stage, after, (begin, row)) in enumerate(zip(stages, stages[1:], windows[1:], strict=False)):
        stage.kept = after.dilation * (after.window - 1) + 1
        stage.begin, stage.row = begin, row
        before = stages[i - 1] if i else None
        if before and stage.op and stage.op.kind in IN_PLACE and before.kept == stage.kept == 1 and before.row == row:
            stage.place = before.place
            continue
        stage.place = total
        total += _aligned(stage.kept * row)
    for stage in stages:
        if stage.copy:
            stage.copy_place = total
            total += _aligned(stage.copy.output.size_bytes // stage.rows)
    return total


def write_stream(writer: Writer, op: Op) -> None:
    """Write the stages as functions and a table, and the call that runs them."""
    stages, size = stages_of(writer.layout, op)
    scratch = writer.arena.scratch[op]
    rows = [_struct(writer, stage, scratch) for stage in stages]
    name = writer.named("s")
    writer.constants.append(f"static const qd_stage {name}[] = {{\n" + ",\n".join(rows) + "};")
    source, target = op.inputs[0], op.output
    zeroed = size if any(stage.window > 1 for stage in stages) else 0
    in_row = source.size_bytes // stages[0].source_rows
    writer.calls.append(
        f"  qd_stream(k, {name}, {len(stages)}, {_bytes(writer.at(source))}, {in_row}, {_bytes(writer.at(target))}, "
        f"{stages[-1].row_bytes}, arena, arena + {scratch}, {zeroed});"
    )


def _bytes(place: str) -> str:
    return f"(uint8_t *)(void *)({place})" if "float" in place else place


def _struct(writer: Writer, stage: Stage, scratch: int) -> str:
    name = writer.named("r")
    if stage.op is None:
        body = f"  memcpy(out, rows[0], {stage.row_bytes});"
    elif stage.op.kind == "conv":
        struct = conv_f32_struct(writer, stage.op)
        body = f"  k->conv_row_f32({struct}, (const float *const *)(const void *)rows, (float *)out);"
    else:
        body = _one_row(writer, stage, stage.op, scratch)
    writer.constants.append(
        f"static void {name}(const qd_kernels *k, uint8_t *arena, const void *const *rows, int32_t y, void *out) {{\n"
        f"  (void)k, (void)arena, (void)y;\n{body}\n}}"
    )
    fields = {k: v for k, v in vars(stage).items() if k not in ("op", "row_bytes", "copy", "copy_place")}
    return f"{{.make = {name}, " + ", ".join(f".{k} = {v}" for k, v in fields.items()) + "}"


def _one_row(writer: Writer, stage: Stage, op: Op, scratch: int) -> str:
    """Return the calls that make one row: the operator's on tensors of that row alone."""
    layout, places = writer.layout, {}

    def row(tensor: Tensor, place: str) -> Tensor:
        axis, _ = rows_of(layout, tensor)
        shape = tuple(1 if i == axis else side for i, side in enumerate(tensor.shape))
        one = Tensor(tensor.name, shape, tensor.scale, tensor.zero)
        layout.orders[one] = layout.orders[tensor]
        kind = "uint8_t" if tensor.integer else "float"
        kind = f"const {kind}" if place == "rows[0]" else kind
        places[one] = f"({kind} *){place}" if place else f"{writer.at(tensor)} + (size_t)y * {one.size}"
        return one

    link = next(t for t in op.inputs if t.data is None)
    output = row(op.output, "out")
    calls, inputs = [], []
    for t in op.inputs:
        if t.data is not None:
            inputs.append(t)
        elif t is link:
            inputs.append(row(t, "rows[0]"))
        elif stage.copy and t is stage.copy.output:
            one = row(t, f"(void *)(arena + {scratch + stage.copy_place})")
            copied = Op("copy", [row(stage.copy.inputs[0], "")], one)
            calls.append(writer.captured(copied, places))
            inputs.append(one)
        else:
            inputs.append(row(t, ""))
    calls.append(writer.captured(Op(op.kind, inputs, output, op.attributes), places))
    return "\n".join(calls)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
