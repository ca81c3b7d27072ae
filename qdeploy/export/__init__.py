"""From a trained model to verified ONNX and INT8 files.

Its parts are imported when they are asked for: ``lint`` needs onnx alone, not torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdeploy.export.float_choice import SearchConfig
    from qdeploy.export.foreign import export_onnx
    from qdeploy.export.lint import LintReport, lint_file
    from qdeploy.export.made import ExportConfig
    from qdeploy.export.module import export_module
    from qdeploy.export.run import export
    from qdeploy.export.verdict import ExportReport

__all__ = [
    "ExportConfig",
    "ExportReport",
    "LintReport",
    "SearchConfig",
    "export",
    "export_module",
    "export_onnx",
    "lint_file",
]
_HOMES = {
    "ExportConfig": "made",
    "ExportReport": "verdict",
    "LintReport": "lint",
    "SearchConfig": "float_choice",
    "export": "run",
    "export_module": "module",
    "export_onnx": "foreign",
    "lint_file": "lint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qdeploy.export' has no attribute '{name}'")
    return getattr(importlib.import_module(f"qdeploy.export.{_HOMES[name]}"), name)
