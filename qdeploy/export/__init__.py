"""From a trained model to verified ONNX and INT8 files."""

from qdeploy.export.made import ExportConfig
from qdeploy.export.module import export_module
from qdeploy.export.pipeline import ExportReport, export

__all__ = ["ExportConfig", "ExportReport", "export", "export_module"]
