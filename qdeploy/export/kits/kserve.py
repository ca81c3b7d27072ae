"""KServe: the recommended model on KServe's Triton runtime, or in a container of ``qdeploy serve``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from qdeploy import __version__
from qdeploy.core.artifact import Artifact
from qdeploy.export.kits.folder import fill_templates
from qdeploy.export.kits.triton import base_name, model_name, write_model

TEMPLATES = Path(__file__).parent / "kserve_files"
MOST_LETTERS = 40
"""Of a service's name: with what Kubernetes adds, a name must stay below 64."""


def write_kserve_kit(folder: Path, artifacts: Sequence[Artifact], recommended: str) -> None:
    """Write the model as KServe's Triton runtime takes it, and two InferenceServices."""
    artifact = next(a for a in artifacts if a.path.name == recommended)
    (folder / "models").mkdir()
    write_model(folder / "models", artifact)
    words = {
        "service": service_name(base_name(artifact.card)),
        "name": base_name(artifact.card),
        "model": model_name(artifact),
        "file": recommended,
        "version": __version__,
        "size": artifact.card.preprocessing.size,
    }
    fill_templates(TEMPLATES, folder, words)


def service_name(name: str) -> str:
    """Return a name as Kubernetes takes it: lower case, digits and hyphens, a letter first."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not plain[:1].isalpha():
        plain = f"model-{plain}"
    return plain[:MOST_LETTERS].strip("-")
