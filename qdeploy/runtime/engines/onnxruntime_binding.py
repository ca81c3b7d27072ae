"""ONNX Runtime's Python binding: the one place that makes its sessions, for engines and for export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from qdeploy.core.machine import compute_threads
from qdeploy.core.reasons import onnxruntime_reason
from qdeploy.runtime.engines.onnxruntime_options import CPU_PROVIDER, SILENT, OnnxRuntimeError, session_entries

VERSION: str = ort.__version__
FAILURES: tuple[type[Exception], ...] = (
    *(e for e in vars(state).values() if isinstance(e, type) and issubclass(e, Exception)),
    RuntimeError,  # what the binding makes of other C++ exceptions
)
"""What a run raises; its exceptions share no base class."""
CPU: tuple[str, dict[str, Any]] = (CPU_PROVIDER, {})

Optimization = Literal["none", "basic", "all"]
_LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def open_binding(
    data: bytes | str,
    *,
    threads: int | None = None,
    target: str = "float",
    providers: Sequence[tuple[str, dict[str, Any]]] = (CPU,),
    optimize: Optimization = "all",
    entries: Mapping[str, str] | None = None,
    keep_optimized: Path | None = None,
) -> ort.InferenceSession:
    """Open an ONNX file.

    Args:
        data: The file's bytes; or its path, where weights may be in other files beside it.
        threads: Threads of one inference; by default as many as may compute; 0 is ONNX Runtime's own choice.
        target: What the file was made for, as its card says; it decides whether products must be exact.
        providers: What runs the graph, with options; without the CPU among them, a graph that needs it is refused.
        optimize: What may be fused and folded.
        entries: Configuration entries that differ from qdeploy's.
        keep_optimized: Where to write the graph as it was optimized.

    Raises:
        OnnxRuntimeError: If ONNX Runtime refuses it; its text is the reason, on one line.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = compute_threads() if threads is None else threads
    options.inter_op_num_threads = 1
    options.log_severity_level = SILENT
    options.graph_optimization_level = _LEVELS[optimize]
    if keep_optimized is not None:
        options.optimized_model_filepath = str(keep_optimized)
    only = {} if CPU in providers else {"session.disable_cpu_ep_fallback": "1"}
    for key, value in {**session_entries(target), **only, **(entries or {})}.items():
        options.add_session_config_entry(key, value)
    try:
        return ort.InferenceSession(data, options, providers=list(providers), enable_fallback=0)
    except Exception as error:  # see FAILURES; and what the binding itself finds wrong
        raise OnnxRuntimeError(onnxruntime_reason(str(error))) from error
