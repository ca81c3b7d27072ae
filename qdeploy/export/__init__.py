"""From a trained model to verified ONNX and INT8 files."""

from qdeploy.export.lint import LintReport, lint, lint_file
from qdeploy.export.made import ExportConfig
from qdeploy.export.module import export_module
from qdeploy.export.pipeline import export
from qdeploy.export.verdict import ExportReport

__all__ = ["ExportConfig", "ExportReport", "LintReport", "export", "export_module", "lint", "lint_file"]
