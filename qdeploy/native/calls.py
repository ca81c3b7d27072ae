"""C of every kind of operator: the call of its kernel, and the parameters that it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np

from qdeploy.native.convolution_calls import write_conv
from qdeploy.native.ir import Op, Tensor
from qdeploy.native.loops import copy_loops, pair_loops
from qdeploy.native.pack import limits
from qdeploy.native.stages import write_stream
from qdeploy.native.writer import Writer, number

UNARY = {
    name: i
    for i, name in enumerate(
        ("clamp", "sigmoid", "exp", "erf", "gelu", "silu", "tanh", "hardsigmoid", "hardswish", "sqrt")
    )
}
"""Numbers of the functions in ``c/kernels_body.h``."""


def _table(writer: Writer, op: Op) -> None:
    table = writer.array("uint8_t", op.attributes["table"], aligned=True)
    writer.line("table", table, writer.at(op.inputs[0]), writer.at(op.output), op.output.size)


def _tables(writer: Writer, op: Op) -> None:
    tables = writer.array("uint8_t", op.attributes["tables"], aligned=True)
    sides = _around(writer, op.output, op.attributes["axis"])
    writer.line("tables", tables, writer.at(op.inputs[0]), writer.at(op.output), *sides)


def _around(writer: Writer, tensor: Tensor, axis: int) -> tuple[int, int, int]:
    """Return how many values lie outside of an axis, along it, and inside of it."""
    order = writer.layout.orders[tensor]
    place = order.index(axis)
    outer, inner = (prod(tensor.shape[i] for i in part) for part in (order[:place], order[place + 1 :]))
    return outer, tensor.shape[axis], inner


def _binary(writer: Writer, op: Op) -> None:
    a = op.attributes
    loops = pair_loops(writer.layout, op)
    if not op.output.integer:
        fields: dict[str, Any] = {"loops": loops, **limits(op)}
        _pair(writer, f"{op.kind}_f32", "qd_binary_f32", fields, op)
    elif op.kind == "add":
        fields = {"loops": loops, **{k: a[k] for k in ("ratio_a", "ratio_b", "fixed")}}
        _pair(writer, "add_u8", "qd_binary_u8", fields, op)
    else:
        zeros = {"zero_a": op.inputs[0].zero, "zero_b": op.inputs[1].zero, "zero_out": float(op.output.zero)}
        _pair(writer, "mul_u8", "qd_binary_u8", {"loops": loops, "multiplier": a["multiplier"], **zeros}, op)


def _pair(writer: Writer, kernel: str, kind: str, fields: dict[str, Any], op: Op, *more: str) -> None:
    inputs = (writer.at(t) for t in op.inputs)
    writer.line(kernel, writer.struct(kind, fields), *inputs, writer.at(op.output), *more)


def _matmul(writer: Writer, op: Op) -> None:
    (a, b), shape = op.inputs, op.output.shape
    step_a, step_b = (writer.layout.strides(t) for t in (a, b))
    batch = int(np.prod(shape[:-2], dtype=np.int64))
    fields: dict[str, Any] = {
        **{"batch": batch, "m": shape[-2], "n": shape[-1], "k": a.shape[-1]},
        **{"a_batch": _batch_step(a, step_a), "a_m": step_a[-2], "a_k": step_a[-1]},
        **{"b_batch": _batch_step(b, step_b), "b_k": step_b[-2]},
    }
    if op.output.integer:
        zeros = {"zero_a": a.zero, "zero_b": b.zero, "zero_out": op.output.zero}
        fields |= {**zeros, "multiplier": op.attributes["multiplier"]}
        _pair(writer, "matmul_u8", "qd_matmul", fields, op, writer.scratch_of(op))
    else:
        _pair(writer, "matmul_f32", "qd_matmul", {**fields, **limits(op)}, op)


def _mean(writer: Writer, op: Op) -> None:
    (source,), axes = op.inputs, op.attributes["axes"]
    big = [i for i in writer.layout.orders[source] if source.shape[i] > 1]
    places = [k for k, i in enumerate(big) if i in axes] or [len(big)]
    sides = [source.shape[i] for i in big]
    outer, count, inner = (
        int(np.prod(part, dtype=np.int64))
        for part in (sides[: places[0]], [sides[k] for k in places if k < len(big)], sides[places[-1] + 1 :])
    )
    along_lanes = not op.output.integer and axes == (len(source.shape) - 1,)
    fields = {
        **{"outer": outer, "outer_stride": count * inner, "inner": inner, "count": count},
        **{"stride": 0 if along_lanes else inner, "zero_in": source.zero, "zero_out": op.output.zero},
        **{"multiplier": op.attributes["multiplier"], **limits(op)},
    }
    kernel = "mean_u8" if op.output.integer else "mean_f32"
    _pair(writer, kernel, "qd_mean", fields, op)


def _maxpool(writer: Writer, op: Op) -> None:
    a, (_, channels, height, width) = op.attributes, op.inputs[0].shape
    fields = {
        **{"height": height, "width": width, "channels": channels},
        **{"out_height": op.output.shape[2], "out_width": op.output.shape[3]},
        **{"rows": a["kernel"][0], "columns": a["kernel"][1]},
        **{"stride_y": a["strides"][0], "stride_x": a["strides"][1], "top": a["pads"][0], "left": a["pads"][1]},
    }
    _pair(writer, "maxpool_u8" if op.output.integer else "maxpool_f32", "qd_maxpool", fields, op)


def _quantize(writer: Writer, op: Op) -> None:
    codes = (number(op.output.scale or 1.0), op.output.zero)
    writer.line("quantize", writer.at(op.inputs[0]), writer.at(op.output), op.output.size, *codes)


def _dequantize(writer: Writer, op: Op) -> None:
    codes = (number(op.inputs[0].scale or 1.0), op.inputs[0].zero)
    writer.line("dequantize", writer.at(op.inputs[0]), writer.at(op.output), op.output.size, *codes)


def _unary(writer: Writer, op: Op) -> None:
    ends = [number(v) for v in limits(op).values()]
    function = UNARY[op.attributes["function"]]
    writer.line("unary_f32", function, writer.at(op.inputs[0]), writer.at(op.output), op.output.size, *ends)


def _softmax(writer: Writer, op: Op) -> None:
    side = op.output.shape[-1]
    places = (writer.at(op.inputs[0]), writer.at(op.output), op.output.size // side, side)
    if not op.output.integer:
        writer.line("softmax", *places)
        return
    powers, multiplier = writer.array("int32_t", op.attributes["powers"]), number(op.attributes["multiplier"])
    writer.line("softmax_u8", powers, *places, multiplier, op.output.zero)


def _topk(writer: Writer, op: Op) -> None:
    places = (writer.at(op.inputs[0]), writer.at(op.output))
    writer.calls.append(f"  qd_topk({', '.join(places)}, {op.inputs[0].size}, {op.output.size});")


def _pick(writer: Writer, op: Op) -> None:
    (source, places), axis = op.inputs, op.attributes["axis"]
    outer, side, bytes_ = prod(source.shape[:axis]), source.shape[axis], prod(source.shape[axis + 1 :])
    sizes = (outer, side, places.size, bytes_ * (1 if op.output.integer else 4))
    pointers = (writer.at(source), writer.at(places), writer.at(op.output))
    writer.calls.append(f"  qd_pick({', '.join(map(str, (*pointers, *sizes)))});")


def _layernorm(writer: Writer, op: Op) -> None:
    a, side = op.attributes, op.output.shape[-1]
    terms = (writer.array("float", np.broadcast_to(a[k], (side,))) for k in ("scale", "bias"))
    sizes = (op.output.size // side, side)
    writer.line("layernorm", writer.at(op.inputs[0]), writer.at(op.output), *sizes, *terms, number(a["epsilon"]))


def _copy(writer: Writer, op: Op) -> None:
    (source,), offset = op.inputs, op.attributes.get("offset", 0)
    item = 1 if op.output.integer else 4
    struct = writer.struct("qd_copy", {**copy_loops(writer.layout, op), "item": item})
    start = f"{writer.at(source)} + {offset}" if offset else writer.at(source)
    writer.calls.append(f"  qd_copy_run({struct}, {start}, {writer.at(op.output)});")


def _concat(writer: Writer, op: Op) -> None:
    axis, item = op.attributes["axis"], 1 if op.output.integer else 4
    outer, _, inner = _around(writer, op.output, axis)
    start = 0
    for part in op.inputs:
        target = f"(uint8_t *)(void *)({writer.at(op.output)}) + {start * inner * item}"
        sizes = (outer, part.shape[axis] * inner * item, op.output.shape[axis] * inner * item)
        writer.calls.append(f"  qd_place({writer.at(part)}, {target}, {', '.join(map(str, sizes))});")
        start += part.shape[axis]


def _batch_step(tensor: Tensor, strides: tuple[int, ...]) -> int:
    """Return the distance between two matrices of a tensor."""
    steps = [strides[i] for i in range(len(strides) - 2) if tensor.shape[i] > 1]
    return steps[-1] if steps else 0


CALLS: Mapping[str, Callable[[Writer, Op], None]] = {
    "conv": write_conv,
    "linear": write_conv,
    "stream": write_stream,
    "table": _table,
    "tables": _tables,
    "add": _binary,
    "sub": _binary,
    "mul": _binary,
    "div": _binary,
    "matmul": _matmul,
    "mean": _mean,
    "maxpool": _maxpool,
    "quantize": _quantize,
    "dequantize": _dequantize,
    "unary": _unary,
    "softmax": _softmax,
    "topk": _topk,
    "pick": _pick,
    "layernorm": _layernorm,
    "copy": _copy,
    "concat": _concat,
}
