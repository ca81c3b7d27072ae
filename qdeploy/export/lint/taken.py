"""Whether ``qdeploy adopt`` and ``qdeploy quantize`` take a file, as far as the file alone tells."""

from __future__ import annotations

from pathlib import Path

from qdeploy.core.errors import InputError
from qdeploy.export.sources.onnx_file import onnx_source
from qdeploy.runtime.engines.onnxruntime_options import OnnxRuntimeError


def refusal(file: Path) -> str | None:
    """Return why an ONNX file is not taken as it is, or which option it needs; None if it is taken.

    The file is run on some generated images. What depends on the data, as its classes, is not known here.
    """
    try:
        onnx_source(file)
    except InputError as error:
        return str(error)
    except OnnxRuntimeError as error:
        return f"ONNX Runtime cannot run it: {error}"
    return None
