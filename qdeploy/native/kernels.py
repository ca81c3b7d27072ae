"""Where the kernels' C is, and how it is compiled."""

from __future__ import annotations

from pathlib import Path

KERNELS = Path(__file__).parent / "c"
KERNEL_FILES = (
    *("kernels.h", "kernels_body.h", "kernels_pick.h", "kernels_avx2.h", "kernels_neon.h"),
    *("kernels_vnni.h", "kernels_vnni_u8.h", "kernels_vnni_f32.h", "qdeploy_native.h"),
)
FLAGS = ("-std=c99", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden")
"""Fused products only where the kernels say so: else a compiler's choice would change the numbers."""
RESIZE_FILES = ("qdeploy_resize.h", "qdeploy_resize.c")
"""The model's input from a photo, for programs without Python."""
STACK_BYTES = 4096
"""A run's stack is below it."""
