"""A Ray Serve application: the recommended model behind HTTP on the machines of a Ray cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qdeploy import __version__
from qdeploy.core.artifact import Artifact
from qdeploy.core.files import write_bytes
from qdeploy.export.kits.folder import fill_templates
from qdeploy.export.kits.triton import base_name

TEMPLATES = Path(__file__).parent / "ray_files"


def write_ray_kit(folder: Path, artifacts: Sequence[Artifact], recommended: str) -> None:
    """Write the recommended file and the application."""
    artifact = next(a for a in artifacts if a.path.name == recommended)
    write_bytes(folder / "model.onnx", artifact.data)
    words = {"name": base_name(artifact.card), "file": recommended, "version": __version__}
    fill_templates(TEMPLATES, folder, words)
