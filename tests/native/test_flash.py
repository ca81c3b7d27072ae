"""The forecast of a microcontroller's flash knows everything that a model's C can hold."""

from __future__ import annotations

import inspect
import re

from qdeploy.native import calls, stages
from qdeploy.native.flash import CALL_BYTES, CORE_BYTES, KERNEL_BYTES, STRUCT_BYTES, code_bytes
from qdeploy.native.kernels import KERNELS

C = (KERNELS / "kernels.h").read_text()


def test_every_kernel_and_every_structure_has_its_bytes() -> None:
    kernels = set(re.findall(r"\(\*(\w+)\)\(const", C.partition("} qd_conv_f32;")[2])) - {"make"}
    kernels |= set(re.findall(r"use\((\w+)\)", C.partition("#define QD_USED(use)")[2].partition("#endif")[0]))
    functions = {f for m in (calls, stages) for f in re.findall(r"\b(qd_\w+)\(", inspect.getsource(m))}
    assert set(KERNEL_BYTES) == kernels | functions
    structs = set(re.findall(r"^\} (qd_\w+);", C, re.M))
    assert set(STRUCT_BYTES) == structs - {"qd_kernels", "qd_stage", "qd_loops"}


def test_a_kernel_counts_once_and_every_call_and_structure_does() -> None:
    one = "static const qd_mean p0 = {.outer = 1};\n  k->mean_u8(&p0, image, arena);\n"
    first = STRUCT_BYTES["qd_mean"] + CALL_BYTES
    assert code_bytes(one) == CORE_BYTES + KERNEL_BYTES["mean_u8"] + first
    assert code_bytes(one + one) == CORE_BYTES + KERNEL_BYTES["mean_u8"] + 2 * first
