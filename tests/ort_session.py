"""ONNX Runtime without qdeploy's sessions, but with what any user needs on a CPU whose 8-bit kernels overflow."""

from __future__ import annotations

import onnxruntime as ort

from qdeploy.runtime.engines.onnxruntime_options import session_entries


def plain_session(model: str | bytes, threads: int = 0) -> ort.InferenceSession:
    """Open an INT8 file on the CPU.

    Args:
        model: The path or the bytes of an ONNX file.
        threads: Of one run; 0 is ONNX Runtime's own choice.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in session_entries("x86").items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
