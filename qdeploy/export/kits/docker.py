"""A folder from which Docker builds an image that serves the recommended model: no torch in it, and no root."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qdeploy import __version__
from qdeploy.core.artifact import Artifact
from qdeploy.core.files import write_bytes
from qdeploy.export.kits.folder import fill_templates
from qdeploy.export.kits.triton import base_name

TEMPLATES = Path(__file__).parent / "docker_files"


def write_docker_kit(folder: Path, artifacts: Sequence[Artifact], recommended: str) -> None:
    """Write the recommended file and a Dockerfile for it."""
    artifact = next(a for a in artifacts if a.path.name == recommended)
    write_bytes(folder / recommended, artifact.data)
    fill_templates(TEMPLATES, folder, {"name": base_name(artifact.card), "file": recommended, "version": __version__})
