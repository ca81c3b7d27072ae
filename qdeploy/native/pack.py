"""Weights as the kernels read them, and the fields of the kernels' parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.native.ir import Op

Array = NDArray[Any]
BLOCK = 16
"""Results that a kernel makes at once."""
WIDE = 64
"""Results of a depthwise convolution on codes that a kernel of vectors makes at once."""
LARGEST = np.finfo(np.float32).max


def is_depthwise(op: Op) -> bool:
    """Tell whether every channel has its own window."""
    weight = op.attributes["weight"]
    return op.kind == "conv" and op.attributes["group"] == op.inputs[0].shape[1] == weight.shape[0] > 1


def window(op: Op) -> dict[str, int]:
    """Return the fields that a convolution of codes and one of floats have in common."""
    if op.kind == "linear":
        channels = op.inputs[0].shape[-1]
        sides = [1, op.inputs[0].size // channels]
        return _window_fields(channels, sides, sides, [0] * 4, [1, 1])
    a, (_, channels, *sides) = op.attributes, op.inputs[0].shape
    return _window_fields(channels, sides, list(op.output.shape[2:]), a["pads"], a["strides"])


def _window_fields(
    channels: int, sides: list[int], out: list[int], pads: list[int], strides: list[int]
) -> dict[str, int]:
    return {
        "height": sides[0],
        "width": sides[1],
        "channels": channels,
        "top": pads[0],
        "left": pads[1],
        "padded_height": sides[0] + pads[0] + pads[2],
        "padded_width": sides[1] + pads[1] + pads[3],
        "out_height": out[0],
        "out_width": out[1],
        "stride_y": strides[0],
        "stride_x": strides[1],
    }


def kernel_weight(op: Op) -> Array:
    """Return the weights as ``[outputs, inputs of a group, rows, columns]``."""
    weight: Array = op.attributes["weight"]
    return weight if weight.ndim == 4 else weight[:, :, None, None]


def taps(op: Op) -> dict[str, int]:
    """Return the fields of a window's size."""
    rows, columns = kernel_weight(op).shape[2:]
    dy, dx = op.attributes.get("dilations", (1, 1))
    return {"rows": rows, "columns": columns, "dilation_y": dy, "dilation_x": dx}


def segments(op: Op) -> tuple[Array, Array, int]:
    """Return a window's runs of bytes: the weights of each, its offset, and its steps of four bytes.

    The pixels of a row follow each other, so that a row of a window is one run; with dilation or groups, a pixel is.
    """
    weight = kernel_weight(op)
    outputs, inputs, rows, columns = weight.shape
    fields, size = window(op), taps(op)
    row = fields["padded_width"] * fields["channels"]
    moved = weight.transpose(0, 2, 3, 1)
    if size["dilation_x"] == 1 and op.attributes["group"] == 1:
        parts = moved.reshape(outputs, rows, columns * inputs)
        offsets = np.arange(rows) * size["dilation_y"] * row
    else:
        parts = moved.reshape(outputs, rows * columns, inputs)
        y, x = np.divmod(np.arange(rows * columns), columns)
        offsets = y * size["dilation_y"] * row + x * size["dilation_x"] * fields["channels"]
    steps = -(-parts.shape[2] // 4)
    return np.pad(parts, ((0, 0), (0, 0), (0, 4 * steps - parts.shape[2]))), offsets, steps


def widened_bytes(op: Op) -> int:
    """Return what the AVX2 kernel needs for the windows of four pixels in 16 bits."""
    _, offsets, steps = segments(op)
    return 4 * len(offsets) * steps * 4 * 2


def packed_u8(op: Op) -> tuple[Array, Array, int]:
    """Return int8 weights ``[group, block, segment, step, 16, 4]``, the offsets of the segments, and the steps."""
    parts, offsets, steps = segments(op)
    groups = op.attributes["group"]
    blocked = by_block(parts.reshape(groups, -1, *parts.shape[1:]), BLOCK)  # [g, b, 16, segment, bytes]
    g, b, lanes, runs, _ = blocked.shape
    return blocked.reshape(g, b, lanes, runs, steps, 4).transpose(0, 1, 3, 4, 2, 5), offsets, steps


@dataclass(frozen=True)
class PackedDepthwise:
    """What a depthwise convolution reads when it makes 64 results at a time, in the order of ``qd_interleave``."""

    weights: Array
    """int8 ``[block of 64, four places of the window, 64, 4]``"""
    bias: Array
    multiplier: Array


def packed_depthwise(op: Op) -> PackedDepthwise:
    """Return weights, bias and multipliers for 64 channels at a time; few channels are repeated to 64."""
    weight = kernel_weight(op)[:, 0].reshape(op.output.shape[1], -1)  # [channel, place]
    channels, places = weight.shape
    blocks, groups = -(-channels // WIDE), -(-places // 4)
    repeated = WIDE // channels if channels < WIDE and WIDE % channels == 0 else 1

    def ordered(values: Array) -> Array:
        all_channels = np.tile(values, (repeated, *[1] * (values.ndim - 1)))
        filled = np.pad(all_channels, [(0, blocks * WIDE - len(all_channels)), *[(0, 0)] * (values.ndim - 1)])
        return filled.reshape(blocks, 4, 4, 4, *values.shape[1:]).swapaxes(1, 2)  # [block, vector, lane, dword, ...]

    fours = np.pad(weight, ((0, 0), (0, 4 * groups - places))).reshape(channels, groups, 4)
    moved = ordered(fours).reshape(blocks, WIDE, groups, 4).swapaxes(1, 2)
    return PackedDepthwise(moved, ordered(folded_bias(op)), ordered(op.attributes["multiplier"]))


def product_bytes(rows: int, columns: int, depth: int) -> int:
    """Return the working memory of a product of codes: both factors packed in fours along the depth, and sums."""
    steps, blocks, lines = -(-depth // 4), -(-columns // BLOCK), -(-rows // BLOCK) * BLOCK
    return blocks * 64 * (steps + 1) + lines * 4 * (steps + 1)


def packed_f32(op: Op, lanes: int) -> Array:
    """Return float weights ``[group, block, row, column, input, lane]``."""
    weight = kernel_weight(op)
    grouped = weight.reshape(op.attributes["group"], -1, *weight.shape[1:])
    return by_block(grouped, lanes).transpose(0, 1, 4, 5, 3, 2)


def by_block(values: Array, lanes: int) -> Array:
    """Split the outputs ``[group, output, ...]`` into blocks ``[group, block, lane, ...]``, the last filled with 0."""
    groups, outputs, *rest = values.shape
    blocks = -(-outputs // lanes)
    filled = np.pad(values, [(0, 0), (0, blocks * lanes - outputs), *[(0, 0)] * len(rest)])
    return filled.reshape(groups, blocks, lanes, *rest)


def folded_bias(op: Op) -> Array:
    """Return the bias less the zero point times the weights' sums: kernels multiply codes as they are.

    Sums of 32 bits may wrap around in between; the last one is right.
    """
    weight = kernel_weight(op).astype(np.int64)
    bias = op.attributes["bias"].astype(np.int64) - op.inputs[0].zero * weight.sum(axis=(1, 2, 3))
    return bias.astype(np.int32)


def border_sums(op: Op) -> Array | None:
    """Return what each row of a window adds to a sum where it is above or below the image: ``[row, group, output]``.

    None if there is nothing above and below, or if a run of bytes is not a row of the window.
    """
    fields, (rows, columns) = window(op), kernel_weight(op).shape[2:]
    if fields["padded_height"] == fields["height"] or (columns > 1 and len(segments(op)[1]) != rows):
        return None
    sums = op.inputs[0].zero * kernel_weight(op).astype(np.int64).sum(axis=(1, 3))  # [output, row]
    return by_block(sums.T.reshape(rows * op.attributes["group"], -1), BLOCK).astype(np.int32)


def requantization(op: Op) -> dict[str, int]:
    """Return zero points and limits of a result of codes."""
    low, high = op.attributes.get("codes", (0, 255))
    zeros = {"zero_in": op.inputs[0].zero, "zero_out": op.output.zero}
    return {**zeros, "low": low, "high": high, "bounded": int(_is_bounded(op))}


def _is_bounded(op: Op) -> bool:
    """Tell whether all sums times their multipliers are below 2^31."""
    most = 255 * np.abs(kernel_weight(op).astype(np.float64)).sum(axis=(1, 2, 3))
    most += np.abs(op.attributes["bias"].astype(np.float64))
    return bool((most * op.attributes["multiplier"] < 2**31 - 2**8).all())


def limits(op: Op) -> dict[str, float]:
    """Return the limits of a result of floats."""
    low, high = op.attributes.get("clamp", (-LARGEST, LARGEST))
    return {"low": float(low), "high": float(high)}
