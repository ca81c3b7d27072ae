"""Flash of a program's code on a Cortex-M, before a compiler has seen it.

The numbers are those of gcc 12 with ``-Os`` for a Cortex-M4 with its floating-point unit; for a Cortex-M7 they are the
same but for some bytes. ``tests/native/test_cortex_m.py`` links kits and compares.
"""

from __future__ import annotations

import re

CORE_BYTES = 2600
"""Startup, serial line, and what the C library gives every program."""
CALL_BYTES = 22
"""Of one call of a kernel, its arguments included."""
STAGE_BYTES = 44
DOUBLES_BYTES = 2700
"""Arithmetic of float64, which the floating-point units do not have: the means of ``DOUBLES`` sum in it."""
DOUBLES = {"mean_f32", "layernorm"}
STRUCT_BYTES = {
    "qd_binary_f32": 56,
    "qd_binary_u8": 76,
    "qd_conv_f32": 100,
    "qd_conv_u8": 116,
    "qd_copy": 44,
    "qd_depthwise_u8": 104,
    "qd_matmul": 60,
    "qd_maxpool": 44,
    "qd_mean": 40,
}
"""Of one constant of each type, with pointers of 32 bits."""
KERNEL_BYTES = {
    "add_f32": 298,
    "add_u8": 404,
    "conv_f32": 992,
    "conv_row_f32": 736,
    "conv_u8": 672,
    "depthwise_u8": 544,
    "dequantize": 34,
    "div_f32": 298,
    "layernorm": 472,
    "matmul_f32": 260,
    "matmul_u8": 336,
    "maxpool_f32": 178,
    "maxpool_u8": 162,
    "mean_f32": 434,
    "mean_u8": 264,
    "mul_f32": 298,
    "mul_u8": 424,
    "qd_copy_run": 604,
    "qd_pick": 94,
    "qd_place": 46,
    "qd_stream": 340,
    "qd_topk": 134,
    "quantize": 100,
    "softmax": 628,
    "softmax_u8": 200,
    "sub_f32": 298,
    "table": 20,
    "tables": 104,
    "unary_f32": 1064,
}
"""Of each kernel with the functions that it calls; those that two share count twice."""


def code_bytes(text: str) -> int:
    """Return the bytes of the whole program without its constant arrays.

    Args:
        text: The C of a model; arrays may be left out of it.
    """
    calls = re.findall(r"(?:k->|\b(?=qd_\w+\())(\w+)\(", text)
    kernels = set(calls)
    structs = sum(STRUCT_BYTES[kind] for kind in re.findall(r"^static const (qd_\w+) \w+ = ", text, re.M))
    stages = text.count(".make = ") * (STAGE_BYTES + CALL_BYTES)
    doubles = DOUBLES_BYTES if kernels & DOUBLES else 0
    return (
        CORE_BYTES + sum(map(KERNEL_BYTES.__getitem__, kernels)) + structs + stages + doubles + CALL_BYTES * len(calls)
    )
