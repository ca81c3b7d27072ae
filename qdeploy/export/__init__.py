"""From a trained model to verified ONNX and INT8 files.

Its parts are imported when they are asked for: ``lint`` needs onnx alone, not torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdeploy.export.api import adopt_onnx, export, export_module, export_onnx
    from qdeploy.export.config import ExportConfig
    from qdeploy.export.int8.float_choice import SearchConfig
    from qdeploy.export.kits.table import write_kits
    from qdeploy.export.libraries import write_libraries
    from qdeploy.export.lint.report import LintReport, lint_file
    from qdeploy.export.recalibration import Recalibration, recalibrate
    from qdeploy.export.report.record import ExportReport
    from qdeploy.export.sources.foreign import ForeignConfig

__all__ = [
    "ExportConfig",
    "ExportReport",
    "ForeignConfig",
    "LintReport",
    "Recalibration",
    "SearchConfig",
    "adopt_onnx",
    "export",
    "export_module",
    "export_onnx",
    "lint_file",
    "recalibrate",
    "write_kits",
    "write_libraries",
]
_HOMES = {
    "ExportConfig": "config",
    "ExportReport": "report.record",
    "ForeignConfig": "sources.foreign",
    "LintReport": "lint.report",
    "Recalibration": "recalibration",
    "SearchConfig": "int8.float_choice",
    "adopt_onnx": "api",
    "export": "api",
    "export_module": "api",
    "export_onnx": "api",
    "lint_file": "lint.report",
    "recalibrate": "recalibration",
    "write_kits": "kits.table",
    "write_libraries": "libraries",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qdeploy.export' has no attribute '{name}'")
    return getattr(importlib.import_module(f"qdeploy.export.{_HOMES[name]}"), name)
