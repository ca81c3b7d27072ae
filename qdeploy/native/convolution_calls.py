"""C of convolutions and of products with constant matrices, their weights packed for the kernels."""

from __future__ import annotations

import numpy as np

from qdeploy.native.ir import Op
from qdeploy.native.lowering import UnsupportedError
from qdeploy.native.pack import (
    BLOCK,
    border_sums,
    by_block,
    folded_bias,
    is_depthwise,
    kernel_weight,
    limits,
    packed_depthwise,
    packed_f32,
    packed_u8,
    requantization,
    taps,
    window,
)
from qdeploy.native.writer import Writer

MAX_ROWS = 16
"""``QD_MAX_ROWS`` in ``c/kernels.h``."""
MAX_TAPS = 64
"""``QD_MAX_TAPS`` in ``c/kernels_vnni_u8.h``."""


def write_conv(writer: Writer, op: Op) -> None:
    """Write a convolution or a product with a constant matrix, on codes or on floats."""
    if op.output.integer:
        (_depthwise_u8 if is_depthwise(op) else _conv_u8)(writer, op)
    else:
        _conv_f32(writer, op)


def _conv_u8(writer: Writer, op: Op) -> None:
    weights, offsets, steps = packed_u8(op)
    groups, blocks = weights.shape[:2]
    fields = {
        **_outputs(writer, op, groups, blocks),
        **window(op),
        "out_channels": kernel_weight(op).shape[0],
        "segments": len(offsets),
        "steps": steps,
        "dilation_y": taps(op)["dilation_y"],
        **requantization(op),
        "offsets": writer.array("int32_t", offsets),
        "weights": writer.in_blob(weights),
        "bias": writer.array("int32_t", by_block(folded_bias(op).reshape(groups, -1), BLOCK)),
        "border": _border(writer, op),
        "multiplier": writer.array("float", by_block(op.attributes["multiplier"].reshape(groups, -1), BLOCK)),
    }
    struct = writer.struct("qd_conv_u8", fields)
    writer.line("conv_u8", struct, writer.at(op.inputs[0]), writer.at(op.output), writer.scratch_of(op))


def _outputs(writer: Writer, op: Op, groups: int, blocks: int) -> dict[str, int]:
    outputs, inputs = kernel_weight(op).shape[:2]
    return {"groups": groups, "inputs": inputs, "outputs": outputs // groups, "blocks": blocks}


def _border(writer: Writer, op: Op) -> str:
    sums = border_sums(op)
    return "NULL" if sums is None else writer.wide("int32_t", sums)


def _depthwise_u8(writer: Writer, op: Op) -> None:
    weights = kernel_weight(op)[:, 0].transpose(1, 2, 0)
    if weights[..., 0].size > MAX_TAPS:
        raise UnsupportedError("Conv", f"a window of {weights[..., 0].size} places, at most {MAX_TAPS} are compiled")
    packed = packed_depthwise(op)
    fields = {
        **window(op),
        **taps(op),
        **requantization(op),
        "weights": writer.array("int16_t", weights),
        "bias": writer.array("int32_t", folded_bias(op)),
        "multiplier": writer.array("float", op.attributes["multiplier"]),
        "packed": writer.wide("int8_t", packed.weights),
        "packed_bias": writer.wide("int32_t", packed.bias),
        "packed_multiplier": writer.wide("float", packed.multiplier),
    }
    struct = writer.struct("qd_depthwise_u8", fields)
    writer.line("depthwise_u8", struct, writer.at(op.inputs[0]), writer.at(op.output), writer.scratch_of(op))


def _conv_f32(writer: Writer, op: Op) -> None:
    struct = conv_f32_struct(writer, op)
    writer.line("conv_f32", struct, writer.at(op.inputs[0]), writer.at(op.output), writer.scratch_of(op))


def conv_f32_struct(writer: Writer, op: Op) -> str:
    """Add the parameters of a convolution on floats and return their address."""
    size, groups = taps(op), op.attributes["group"]
    if size["rows"] > MAX_ROWS:
        raise UnsupportedError("Conv", f"a window of {size['rows']} rows, at most {MAX_ROWS} are compiled")
    depthwise = is_depthwise(op)
    outputs = kernel_weight(op).shape[0] // groups
    lanes = 0 if depthwise else 8 if outputs <= 8 else BLOCK
    if depthwise:
        weights, bias = kernel_weight(op)[:, 0].transpose(1, 2, 0), np.pad(op.attributes["bias"], (0, 7))
    else:
        weights = packed_f32(op, lanes)
        bias = by_block(op.attributes["bias"].reshape(groups, -1), lanes)
    fields = {
        **_outputs(writer, op, groups, -(-outputs // lanes) if lanes else 0),
        "lanes": lanes,
        **window(op),
        **size,
        "out_channels": kernel_weight(op).shape[0],
        **limits(op),
        "weights": writer.array("float", weights, aligned=True),
        "bias": writer.array("float", bias),
    }
    return writer.struct("qd_conv_f32", fields)
