"""From a trained model to verified ONNX and INT8 files."""

from qdeploy.export.foreign import export_onnx
from qdeploy.export.lint import LintReport, lint, lint_file
from qdeploy.export.made import ExportConfig
from qdeploy.export.module import export_module
from qdeploy.export.run import export
from qdeploy.export.verdict import ExportReport

__all__ = ["ExportConfig", "ExportReport", "LintReport", "export", "export_module", "export_onnx", "lint", "lint_file"]
