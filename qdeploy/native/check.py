"""Whether a program keeps to its own grammar: the shapes, numbers and constants of every operator fit together.

A graph can say anything; what passes here can be planned, written and run without leaving its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite, prod
from typing import Any

import numpy as np

from qdeploy.native.ir import Op, Program, Tensor
from qdeploy.native.lowering import UnsupportedError

LARGEST_NUMBER = 2**31 - 1
"""Of a kernel's parameters."""
MOST_PLACES = 1 << 24
"""Along an axis: places are floats, which hold each whole number below this."""
CODES = 256
MOST_TABLES = 4
"""``QD_MAX_TABLES`` in ``c/kernels.h``."""


def require_sound(program: Program) -> None:
    """Check a program.

    Raises:
        UnsupportedError: If an operator contradicts itself, by its kind and name.
    """
    made = {program.image}
    makers: dict[Tensor, Op] = {}
    for op in program.ops:
        for t in (*op.inputs, op.output):
            _require_tensor(op, t)
        _require(op, all(t in made or t.data is not None for t in op.inputs), "reads what is not made yet")
        _require(op, op.output not in made and op.output.data is None, "makes what is there already")
        made.add(op.output)
        _require(op, all(_is_number(v) for k, v in op.attributes.items() if k not in _LIMITS), "has numbers beyond C's")
        _require(op, [t.integer for t in op.inputs] == _kinds(op), "takes codes where floats are, or floats for codes")
        RULES[op.kind](op, op.output.shape, [t.shape for t in op.inputs])
        if op.kind == "pick":
            _require_places(op, makers.get(op.inputs[1]))
        makers[op.output] = op
    for t in program.outputs:
        if t not in made or len(t.shape) != 2 or t.integer:
            raise UnsupportedError("graph", f"the output '{t.name}' is not made as rows of floats")


_LIMITS = ("clamp",)
_FLOATS = ("sub", "div", "unary", "layernorm", "topk")


def _kinds(op: Op) -> list[bool]:
    """Return whether each input must hold codes; nothing that an operator's inputs could be if its result cannot be."""
    integer, count = op.output.integer, len(op.inputs)
    if op.kind in ("quantize", "dequantize"):
        return [not integer] if integer == (op.kind == "quantize") else []
    if op.kind == "pick":
        return [integer, False]
    possible = not integer if op.kind in _FLOATS else integer if op.kind in ("table", "tables") else True
    return [integer] * count if possible else []


def _require(op: Op, holds: bool, why: str) -> None:
    if not holds:
        raise UnsupportedError(op.kind, f"'{op.output.name}' {why}")


def _require_tensor(op: Op, t: Tensor) -> None:
    scaled = t.scale is None or (isfinite(t.scale) and 1e-37 < t.scale < 1e37 and 0 <= t.zero < CODES)
    _require(op, scaled, f"has codes with a scale of {t.scale} and a zero point of {t.zero}")
    if t.data is not None:
        kind = np.uint8 if t.integer else np.float32
        _require(
            op, t.data.shape == t.shape and t.data.dtype == kind and t.size > 0, "reads a constant of another shape"
        )


def _is_number(value: Any) -> bool:
    """Tell whether C's numbers can hold a value."""
    if isinstance(value, np.ndarray):
        return bool(np.isfinite(value).all())
    if isinstance(value, (tuple, list)):
        return all(_is_number(v) for v in value)
    if isinstance(value, (int, np.integer)):
        return abs(int(value)) <= LARGEST_NUMBER
    return isinstance(value, str) or (isfinite(value) and abs(value) <= np.finfo(np.float32).max)


Shape = tuple[int, ...]


def _same(op: Op, output: Shape, inputs: list[Shape]) -> None:
    _require(op, inputs == [output], f"is {list(output)} of {inputs}")


def _table(op: Op, output: Shape, inputs: list[Shape]) -> None:
    _same(op, output, inputs)
    _require(op, op.attributes["table"].shape == (CODES,), "has a table of another size")


def _tables(op: Op, output: Shape, inputs: list[Shape]) -> None:
    _same(op, output, inputs)
    axis = op.attributes["axis"]
    _require(op, 0 <= axis < len(output) and output[axis] <= MOST_TABLES, "has more tables than are compiled")
    _require(op, op.attributes["tables"].shape == (output[axis], CODES), "has tables of another size")


def _require_terms(op: Op, outputs: int) -> None:
    names = ("bias", "multiplier") if op.output.integer else ("bias",)
    _require(op, all(op.attributes[n].shape == (outputs,) for n in names), "has terms of another size")


def _conv(op: Op, output: Shape, inputs: list[Shape]) -> None:
    a, (source,) = op.attributes, inputs
    weight, group, pads = a["weight"], a["group"], a["pads"]
    fits = len(source) == 4 == weight.ndim and source[0] == 1 <= group
    fits = fits and min(weight.shape) > 0 and [weight.shape[1] * group, weight.shape[0] % group] == [source[1], 0]
    _require(op, fits, f"has weights {list(weight.shape)} in {group} groups for {list(source)}")
    sides = _sides(source[2:], weight.shape[2:], pads, a["strides"], a["dilations"])
    _require(op, output == (1, weight.shape[0], *sides), f"is {list(output)} and not {sides}")
    _require_terms(op, weight.shape[0])


def _sides(
    sides: Shape, window: Shape, pads: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """Return the sides of a result; empty if pads, strides or dilations cannot be."""
    if len(pads) != 4 or min(pads) < 0 or [len(strides), len(dilations)] != [2, 2] or min(*strides, *dilations) < 1:
        return []
    steps = zip(sides, window, pads[:2], pads[2:], strides, dilations, strict=True)
    return [(side + a + b - d * (taps - 1) - 1) // stride + 1 for side, taps, a, b, stride, d in steps]


def _linear(op: Op, output: Shape, inputs: list[Shape]) -> None:
    (source,), weight = inputs, op.attributes["weight"]
    fits = weight.ndim == 2 and source and source[-1] == weight.shape[1] and output == (*source[:-1], weight.shape[0])
    _require(op, bool(fits), f"is {list(output)} of {list(source)} and weights {list(weight.shape)}")
    _require_terms(op, weight.shape[0])


def _matmul(op: Op, output: Shape, inputs: list[Shape]) -> None:
    a, b = inputs
    fits = len(a) == len(b) >= 2 and a[:-2] == b[:-2] and a[-1] == b[-2] and output == (*a[:-1], b[-1])
    _require(op, fits, f"is {list(output)} of {list(a)} and {list(b)}")


def _pair(op: Op, output: Shape, inputs: list[Shape]) -> None:
    try:
        fits = len(inputs) == 2 and np.broadcast_shapes(*inputs) == output
    except ValueError:
        fits = False
    _require(op, fits, f"is {list(output)} of {inputs}")


def _concat(op: Op, output: Shape, inputs: list[Shape]) -> None:
    axis, rank = op.attributes["axis"], len(output)
    alike = all(len(s) == rank and [*s[:axis], *s[axis + 1 :]] == [*output[:axis], *output[axis + 1 :]] for s in inputs)
    _require(op, alike and 0 <= axis < rank and sum(s[axis] for s in inputs) == output[axis], f"is made of {inputs}")
    kinds = {(t.scale, t.zero) for t in (*op.inputs, op.output)}
    _require(op, len(kinds) == 1, "is made of codes that differ")


def _mean(op: Op, output: Shape, inputs: list[Shape]) -> None:
    axes, (source,) = op.attributes["axes"], inputs
    fits = list(axes) == sorted(set(axes)) and all(0 <= a < len(source) for a in axes)
    kept = [side for i, side in enumerate(source) if i not in axes]
    _require(op, fits and bool(axes) and prod(kept) == prod(output), f"is {list(output)} of {list(source)} over {axes}")


def _maxpool(op: Op, output: Shape, inputs: list[Shape]) -> None:
    a, (source,) = op.attributes, inputs
    kernel, pads = a["kernel"], a["pads"]
    _require(op, len(source) == 4 and source[0] == 1 and len(kernel) == 2, f"pools {list(source)}")
    sides = _sides(source[2:], tuple(kernel), pads, a["strides"], [1, 1])
    inside = all(p < kernel[i % 2] for i, p in enumerate(pads)) and min(kernel) > 0
    _require(op, inside and output == (1, source[1], *sides), f"is {list(output)} of windows {kernel} with pads {pads}")


def _reshape(op: Op, output: Shape, inputs: list[Shape]) -> None:
    _require(op, prod(output) == prod(inputs[0]), f"is {list(output)} of {list(inputs[0])}")


def _transpose(op: Op, output: Shape, inputs: list[Shape]) -> None:
    (source,), perm = inputs, op.attributes["perm"]
    fits = sorted(perm) == list(range(len(source))) and output == tuple(source[i] for i in perm)
    _require(op, fits, f"is {list(output)} of {list(source)} in the order {perm}")


def _slice(op: Op, output: Shape, inputs: list[Shape]) -> None:
    (source,), spans = inputs, op.attributes["spans"]
    fits = len(spans) == len(source) == len(output) and all(
        0 <= start < stop <= side and step > 0 and len(range(start, stop, step)) == made
        for (start, stop, step), side, made in zip(spans, source, output, strict=True)
    )
    _require(op, fits, f"is {list(output)} of {list(source)}")


def _pick(op: Op, output: Shape, inputs: list[Shape]) -> None:
    axis, (source, places) = op.attributes["axis"], inputs
    fits = 0 <= axis < len(source) and len(places) == 1
    _require(op, fits and output == (*source[:axis], *places, *source[axis + 1 :]), f"is {list(output)} at {places}")


def _require_places(op: Op, maker: Op | None) -> None:
    """Places are constant or of a TopK, and on the axis."""
    side, data = op.inputs[0].shape[op.attributes["axis"]], op.inputs[1].data
    if data is not None:
        inside = bool(((data >= 0) & (data < side)).all())
    else:
        inside = maker is not None and maker.kind == "topk" and maker.inputs[0].size <= side
    _require(op, inside and side <= MOST_PLACES, f"takes values beyond an axis of {side}")


def _topk(op: Op, output: Shape, inputs: list[Shape]) -> None:
    fits = len(inputs[0]) == len(output) == 1 <= output[0] <= inputs[0][0] <= MOST_PLACES
    _require(op, fits, f"are {output} of {inputs[0]}")


def _layernorm(op: Op, output: Shape, inputs: list[Shape]) -> None:
    _same(op, output, inputs)
    fits = all(op.attributes[n].shape in ((), (1,), output[-1:]) for n in ("scale", "bias"))
    _require(op, bool(output) and fits, "has terms of another size")


RULES: dict[str, Callable[[Op, Shape, list[Shape]], None]] = {
    **dict.fromkeys(("quantize", "dequantize", "unary", "softmax"), _same),
    **dict.fromkeys(("add", "sub", "mul", "div"), _pair),
    "concat": _concat,
    "conv": _conv,
    "layernorm": _layernorm,
    "linear": _linear,
    "matmul": _matmul,
    "maxpool": _maxpool,
    "mean": _mean,
    "pick": _pick,
    "reshape": _reshape,
    "slice": _slice,
    "table": _table,
    "tables": _tables,
    "topk": _topk,
    "transpose": _transpose,
}
"""By kind; each takes the operator, the shape of its result and those of its inputs."""
