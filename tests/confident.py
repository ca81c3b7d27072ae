"""Model files with a temperature and a threshold of our choice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx

from qdeploy.core.artifact import read_artifact
from qdeploy.core.confidence import Confidence
from qdeploy.export.graph.seal import sealed_bytes
from qdeploy.export.graph.temperature import with_temperature


def confident(source: Path, target: Path, *, temperature: float = 1.0, threshold: float | None = None) -> Path:
    """Write a copy of a model file that divides its logits so, and answers only images above a score."""
    artifact = read_artifact(source)
    confidence = Confidence(
        temperature=temperature,
        images=500,
        reason="chosen by a test",
        coverage=None if threshold is None else 0.95,
        threshold=threshold,
    )
    graph = with_temperature(onnx.load_from_string(artifact.data), temperature)
    target.write_bytes(sealed_bytes(graph, replace(artifact.card, confidence=confidence)))
    return target
