"""The report of an export, ``report.json``, as dataclasses."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qdeploy.bench import Comparison
from qdeploy.core.card import Accuracy, CalibrationRecord, Origin
from qdeploy.core.confidence import Confidence
from qdeploy.core.intervals import PairedDifference
from qdeploy.core.metrics import MacroScores, Parity
from qdeploy.export.confidence import Diagram
from qdeploy.export.engines.step import EngineReport
from qdeploy.export.int8.layers import LayerRow
from qdeploy.export.int8.step import Int8Report
from qdeploy.export.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class ArtifactReport:
    """One file that an export made."""

    path: str
    precision: str
    target: str
    engine: str
    size_bytes: int
    sha256: str
    parity: Parity
    """Agreement of the file's logits with those of the step before."""
    accuracy: Accuracy | None
    """None if there were no labelled images."""
    macro: MacroScores | None
    """Precision, recall and F1 on the same images, means over the classes."""
    latency_ms: dict[str, float | None]
    launches_p50_ms: tuple[float, ...]
    """Median of each time that the file was opened anew."""
    peak_rss_bytes: int | None
    """Largest resident size of a fresh process that opens the file and runs it once; None if it is not of this CPU."""
    float_layers: str
    confidence: Confidence | None = None
    """Temperature and threshold; None without labelled images."""
    diagram: Diagram | None = None
    """Reliability on the test images."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "parity": self.parity.to_dict(), "accuracy": self.accuracy and self.accuracy.to_dict()}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One link of the chain from the trained model to a file."""

    step: str
    """Names of the two forms that are compared."""
    parity: Parity

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {"step": self.step, **self.parity.to_dict()}


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """The whole export."""

    name: str
    out: str
    artifacts: tuple[ArtifactReport, ...]
    """The files that were kept."""
    rejected: tuple[ArtifactReport, ...] = ()
    """INT8 files that were made and measured, and not kept."""
    accepted: bool
    """False if an INT8 file was made and not kept."""
    verdict: str
    """All verdicts in words."""
    verdicts: tuple[Verdict, ...]
    """One for each INT8 file."""
    recommended: str
    """Name of the file that predict and bench take: INT8 if it was measured to be faster here."""
    comparison: Comparison | None
    """Speed of this machine's INT8 against fp32."""
    difference: PairedDifference | None
    """INT8 minus fp32 accuracy on the test split, of the first INT8 file."""
    steps: tuple[Step, ...]
    """Parity of every step, those of files that were not kept included."""
    int8: tuple[Int8Report, ...]
    layers: tuple[LayerRow, ...]
    """Layers of the first INT8 file: precision and error of each."""
    engines: tuple[EngineReport, ...] = ()
    origin: Origin
    calibration: CalibrationRecord | None
    """Calibration of the first INT8 file; None if there is none."""
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of ``qdeploy export``."""
        return {
            **asdict(self),
            "artifacts": [a.to_dict() for a in self.artifacts],
            "rejected": [a.to_dict() for a in self.rejected],
            "steps": [s.to_dict() for s in self.steps],
        }


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A test image that INT8 classifies otherwise."""

    pixels: NDArray[np.uint8]
    """``[S, S, 3]``"""
    label: str
    fp32: str
    int8: str
    looks: tuple[tuple[str, Image.Image], ...] = ()
    """Pictures of where each file finds its answer, with captions; empty where a file shows nothing."""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """How often the test images of each class were answered with each class."""

    labels: tuple[str, ...]
    fp32: NDArray[np.int64]
    """``[K, K]``: a row for each true class, a column for each answer."""
    int8: NDArray[np.int64] | None
    """The same of the first INT8 file; None if there is none."""
