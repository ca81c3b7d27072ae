"""Session options and names of ONNX Runtime on the CPU, for its C library and its Python binding alike."""

from __future__ import annotations

from pathlib import Path

from qdeploy.core.errors import EngineError
from qdeploy.core.machine import SEVEN_BIT_TARGET, cpu_flags, saturates

CPU_PROVIDER = "CPUExecutionProvider"
SILENT = 4
"""Log level: fatal errors only; all others are raised."""
WAITING = {"session.intra_op.allow_spinning": "0"}
"""Threads that wait sleep: spinning ones are at best 1.5 times as fast alone, take 1.5 times as long beside a busy
neighbour, and burn a core between inferences (benchmarks/threads.py)."""
EXACT_PRODUCTS = {"session.x64quantprecision": "1"}
"""8-bit products are summed in 32 bits. Without VNNI ONNX Runtime sums pairs of them in 16 bits, which overflow in
silence; with VNNI its sums are exact anyway and this would slow them down (benchmarks/other_cpus.py)."""


class OnnxRuntimeError(Exception):
    """What ONNX Runtime says."""


class OnnxRuntimeRunError(EngineError):
    """ONNX Runtime failed while it ran a model."""


def session_entries(target: str) -> dict[str, str]:
    """Return the configuration entries of a session on this machine's CPU.

    Args:
        target: What the file was made for, as its card says.
    """
    return {**WAITING, **EXACT_PRODUCTS} if saturates(target) else WAITING


def cpu_engine(version: str, path: str, target: str) -> str:
    """Return what a session on this machine's CPU is called: which kernels run is part of it.

    Args:
        version: ONNX Runtime's.
        path: How it is called: ``library`` or ``binding``.
        target: What the file was made for, as its card says.
    """
    return f"ONNX Runtime {version}, CPU, {path}{', exact products' if saturates(target) else ''}"


def cpu_note(path: Path, target: str) -> str | None:
    """Return what the user should know of how a file runs on this machine's CPU; None if nothing."""
    if not saturates(target) or "avx2" not in cpu_flags():  # older CPUs have no fast kernels that overflow
        return None
    return (
        f"{path.name} was made for {target}; this CPU has no VNNI, so it runs on exact but slower kernels; "
        f"a file exported with `target={SEVEN_BIT_TARGET}` is faster here"
    )
