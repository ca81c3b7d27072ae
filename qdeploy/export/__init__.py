"""From a trained model to verified ONNX and INT8 files.

Its parts are imported when they are asked for: ``lint`` needs onnx alone, not torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdeploy.export.api import export, export_module, export_onnx
    from qdeploy.export.config import ExportConfig
    from qdeploy.export.int8.float_choice import SearchConfig
    from qdeploy.export.kits.table import write_kits
    from qdeploy.export.lint.report import LintReport, lint_file
    from qdeploy.export.report.record import ExportReport

__all__ = [
    "ExportConfig",
    "ExportReport",
    "LintReport",
    "SearchConfig",
    "export",
    "export_module",
    "export_onnx",
    "lint_file",
    "write_kits",
]
_HOMES = {
    "ExportConfig": "config",
    "ExportReport": "report.record",
    "LintReport": "lint.report",
    "SearchConfig": "int8.float_choice",
    "export": "api",
    "export_module": "api",
    "export_onnx": "api",
    "lint_file": "lint.report",
    "write_kits": "kits.table",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qdeploy.export' has no attribute '{name}'")
    return getattr(importlib.import_module(f"qdeploy.export.{_HOMES[name]}"), name)
