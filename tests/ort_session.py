"""ONNX Runtime without qdeploy's sessions, but with what any user needs on a CPU whose 8-bit kernels overflow."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from qdeploy.runtime.engines.onnxruntime_binding import open_binding


def plain_session(model: str | bytes, threads: int = 0) -> ort.InferenceSession:
    """Open an INT8 file on the CPU.

    Args:
        model: The path or the bytes of an ONNX file.
        threads: Of one run; 0 is ONNX Runtime's own choice.
    """
    data = model if isinstance(model, bytes) else Path(model).read_bytes()
    return open_binding(data, threads=threads, target="x86")
