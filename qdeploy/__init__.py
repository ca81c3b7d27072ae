"""qdeploy: small image classifiers from a folder of images to a verified INT8 model on a device.

``import qdeploy`` loads no heavy library; ``qdeploy.load`` opens a model without torch. The import switches off
the usage events that ONNX Runtime would send to its maker (``qdeploy.core.telemetry``), if that is imported later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qdeploy.core.telemetry import switch_off

if TYPE_CHECKING:
    from qdeploy.runtime.classifier import Classifier, Prediction, load
    from qdeploy.serve.client import Client

__all__ = ["Classifier", "Client", "Prediction", "__version__", "load"]
__version__ = "0.1.0"

switch_off()


def __getattr__(name: str) -> Any:
    if name in ("Classifier", "Prediction", "load"):
        from qdeploy.runtime import classifier

        return getattr(classifier, name)
    if name == "Client":
        from qdeploy.serve.client import Client

        return Client
    raise AttributeError(f"module 'qdeploy' has no attribute '{name}'")
