"""The oracle: what the generated C computes, in numpy, bit for bit, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.native.arithmetic import (
    FUNCTIONS,
    dequantized,
    exp,
    f32,
    fma,
    lane_sum,
    quantized,
    rounded,
)
from qdeploy.native.ir import Op, Program, Tensor

Array = NDArray[Any]


def simulate(program: Program, image: NDArray[np.uint8], given: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """Return the values of every tensor of a program by name.

    Args:
        program: The program.
        image: uint8 ``[S, S, 3]``.
        given: Values to use for some tensors instead of what is computed, for comparisons operator by operator;
            what was computed is returned.
    """
    values: dict[Tensor, Array] = {program.image: image.reshape(program.image.shape)}
    computed = {program.image.name: values[program.image]}
    for op in program.ops:
        inputs = [t.data if t.data is not None else values[t] for t in op.inputs]
        made = run_op(op, inputs)
        computed[op.output.name] = made
        values[op.output] = (given or {}).get(op.output.name, made)
    return computed


def run_op(op: Op, inputs: list[Array]) -> Array:
    """Return what one operator makes of its inputs."""
    key = f"{op.kind}_{'u8' if op.output.integer else 'f32'}"
    rule = RULES.get(key) or RULES[op.kind]
    made = rule(op, inputs)
    limits = op.attributes.get("clamp")
    if limits and not op.output.integer:
        made = np.minimum(np.maximum(made, f32(limits[0])), f32(limits[1]))
    assert made.shape == op.output.shape, f"{op}: {made.shape}"
    return made


def _tables(op: Op, inputs: list[Array]) -> Array:
    axis, rank = op.attributes["axis"], inputs[0].ndim
    places = np.arange(inputs[0].shape[axis]).reshape([-1 if i == axis else 1 for i in range(rank)])
    made: Array = op.attributes["tables"][places, inputs[0]]
    return made


def _conv_u8(op: Op, inputs: list[Array]) -> Array:
    a, zero = op.attributes, op.inputs[0].zero
    columns = _windows(inputs[0].astype(np.int64) - zero, op)  # [G, K, P]
    weight = a["weight"].astype(np.int64)
    groups = a["group"]
    flat = weight.reshape(groups, weight.shape[0] // groups, -1)
    sums = np.matmul(flat, columns).reshape(weight.shape[0], -1) + a["bias"].astype(np.int64)[:, None]
    steps = sums.astype(np.int32).astype(np.float32) * a["multiplier"][:, None]
    low, high = a.get("codes", (0, 255))
    codes = rounded(steps, op.output.zero, low, high)
    return (codes.T if op.kind == "linear" else codes).reshape(op.output.shape)


def _conv_f32(op: Op, inputs: list[Array]) -> Array:
    a = op.attributes
    weight, groups = a["weight"], a["group"]
    out = weight.shape[0] // groups
    columns = _windows(inputs[0], op)
    # the chain goes over rows, columns and channels of the window, as the values lie in memory
    columns = columns.reshape(groups, weight.shape[1], -1, columns.shape[-1]).transpose(0, 2, 1, 3)
    columns = columns.reshape(groups, -1, columns.shape[-1])
    flat = weight.reshape(groups, out, weight.shape[1], -1).transpose(0, 1, 3, 2).reshape(groups, out, -1)
    total = np.broadcast_to(a["bias"].reshape(groups, out, 1), (groups, out, columns.shape[-1]))
    for k in range(columns.shape[1]):
        total = fma(flat[:, :, k, None], columns[:, None, k], total)
    flat = total.reshape(weight.shape[0], -1)
    return (flat.T if op.kind == "linear" else flat).reshape(op.output.shape)


def _windows(values: Array, op: Op) -> Array:
    """Return the inputs of each output pixel: ``[group, channels * window, pixels]``."""
    if op.kind == "linear":
        return values.reshape(-1, values.shape[-1]).T[None]
    a = op.attributes
    (top, left, bottom, right), (sy, sx), (dy, dx) = a["pads"], a["strides"], a["dilations"]
    kh, kw = a["weight"].shape[2:]
    padded = np.pad(values[0], ((0, 0), (top, bottom), (left, right)))
    h, w = op.output.shape[2:]
    taps = [
        padded[:, y * dy : y * dy + (h - 1) * sy + 1 : sy, x * dx : x * dx + (w - 1) * sx + 1 : sx]
        for y in range(kh)
        for x in range(kw)
    ]
    stacked = np.stack(taps, axis=1)  # [C, K, H, W]
    return stacked.reshape(a["group"], -1, h * w)


def _matmul_u8(op: Op, inputs: list[Array]) -> Array:
    a, b = (v.astype(np.int64) - t.zero for v, t in zip(inputs, op.inputs, strict=True))
    return rounded(np.matmul(a, b).astype(np.float32) * f32(op.attributes["multiplier"]), op.output.zero)


def _matmul_f32(op: Op, inputs: list[Array]) -> Array:
    a, b = inputs
    total = np.zeros(op.output.shape, np.float32)
    for k in range(a.shape[-1]):
        total = fma(a[..., :, k, None], b[..., None, k, :], total)
    return total


def _add_u8(op: Op, inputs: list[Array]) -> Array:
    ra, rb, fixed = (f32(op.attributes[k]) for k in ("ratio_a", "ratio_b", "fixed"))
    a, b = (v.astype(np.float32) for v in inputs)
    return rounded(fma(a, ra, fma(b, rb, fixed)), 0)


def _mul_u8(op: Op, inputs: list[Array]) -> Array:
    a, b = (v.astype(np.int32) - t.zero for v, t in zip(inputs, op.inputs, strict=True))
    return rounded((a * b).astype(np.float32) * f32(op.attributes["multiplier"]) + f32(op.output.zero), 0)


def _mean_u8(op: Op, inputs: list[Array]) -> Array:
    (source,), axes = op.inputs, op.attributes["axes"]
    sums = (inputs[0].astype(np.int32) - source.zero).sum(axis=axes)
    return rounded(sums.astype(np.float32) * f32(op.attributes["multiplier"]), op.output.zero).reshape(op.output.shape)


def _mean_f32(op: Op, inputs: list[Array]) -> Array:
    axes = op.attributes["axes"]
    kept = [i for i in range(inputs[0].ndim) if i not in axes]
    values = inputs[0].transpose(*kept, *axes).reshape(*(inputs[0].shape[i] for i in kept), -1)
    if axes == (inputs[0].ndim - 1,):
        total = lane_sum(values)
    else:
        total = np.zeros(values.shape[:-1], np.float32)
        for k in range(values.shape[-1]):
            total = total + values[..., k]
    return (total * f32(op.attributes["multiplier"])).reshape(op.output.shape)


def _softmax(op: Op, inputs: list[Array]) -> Array:
    powers = exp(inputs[0] - inputs[0].max(axis=-1, keepdims=True))
    return powers / lane_sum(powers)[..., None]


def _softmax_u8(op: Op, inputs: list[Array]) -> Array:
    codes = inputs[0].astype(np.int32)
    powers = op.attributes["powers"][codes.max(axis=-1, keepdims=True) - codes]
    share = f32(op.attributes["multiplier"]) / powers.sum(axis=-1, keepdims=True, dtype=np.int32).astype(np.float32)
    return rounded(powers.astype(np.float32) * share, op.output.zero)


def _layernorm(op: Op, inputs: list[Array]) -> Array:
    (x,), a = inputs, op.attributes
    share = f32(1.0) / f32(x.shape[-1])
    centred = x - (lane_sum(x) * share)[..., None]
    spread = np.sqrt(lane_sum(centred * centred) * share + f32(a["epsilon"]))
    return fma(centred / spread[..., None], a["scale"], a["bias"])


def _maxpool(op: Op, inputs: list[Array]) -> Array:
    a = op.attributes
    (top, left, bottom, right), (sy, sx), (kh, kw) = a["pads"], a["strides"], a["kernel"]
    least = 0 if op.output.integer else -np.inf
    padded = np.pad(inputs[0][0], ((0, 0), (top, bottom), (left, right)), constant_values=least)
    h, w = op.output.shape[2:]
    taps = [
        padded[:, y : y + (h - 1) * sy + 1 : sy, x : x + (w - 1) * sx + 1 : sx] for y in range(kh) for x in range(kw)
    ]
    return np.max(taps, axis=0)[None].astype(inputs[0].dtype)


def _slice(op: Op, inputs: list[Array]) -> Array:
    return inputs[0][tuple(slice(*span) for span in op.attributes["spans"])]


def _unary(op: Op, inputs: list[Array]) -> Array:
    function = op.attributes["function"]
    return inputs[0] if function == "clamp" else FUNCTIONS[function](inputs[0])


RULES: dict[str, Callable[[Op, list[Array]], Array]] = {
    "quantize": lambda op, x: quantized(x[0], op.output.scale or 1.0, op.output.zero),
    "dequantize": lambda op, x: dequantized(x[0], op.inputs[0].scale or 1.0, op.inputs[0].zero),
    "table": lambda op, x: op.attributes["table"][x[0]],
    "tables": _tables,
    "conv_u8": _conv_u8,
    "conv_f32": _conv_f32,
    "linear_u8": _conv_u8,
    "linear_f32": _conv_f32,
    "matmul_u8": _matmul_u8,
    "matmul_f32": _matmul_f32,
    "add_u8": _add_u8,
    "mul_u8": _mul_u8,
    "mean_u8": _mean_u8,
    "mean_f32": _mean_f32,
    "add": lambda op, x: x[0] + x[1],
    "sub": lambda op, x: x[0] - x[1],
    "mul": lambda op, x: x[0] * x[1],
    "div": lambda op, x: x[0] / x[1],
    "unary": _unary,
    "softmax_f32": _softmax,
    "softmax_u8": _softmax_u8,
    "layernorm": _layernorm,
    "maxpool": _maxpool,
    "concat": lambda op, x: np.concatenate(x, axis=op.attributes["axis"]),
    "reshape": lambda op, x: x[0].reshape(op.output.shape),
    "transpose": lambda op, x: x[0].transpose(op.attributes["perm"]),
    "slice": _slice,
    "pick": lambda op, x: np.take(x[0], x[1].astype(np.int64), axis=op.attributes["axis"]),
    "topk": lambda op, x: np.argsort(-x[0], kind="stable")[: op.output.size].astype(np.float32),
}
