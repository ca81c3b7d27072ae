"""What the steps of a trial find: probe, train, export and measure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What a few training steps tell."""

    epoch_s: float
    """Predicted seconds of an epoch with its two evaluations."""
    test_s: float
    """Predicted seconds of the last evaluation."""
    stepping_s: float
    """Seconds that the probe itself has trained for."""
    images: dict[str, int]
    """Of each split."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run that has ended."""

    family: str
    params: int
    macs: int
    input_size: int
    epochs: int
    best_epoch: int
    val_top1: float
    """Percent."""
    test_top1: float | None
    seconds: float
    """Of training and validation."""
    images: dict[str, int]
    """Of each split."""
    dataset: str
    dataset_sha256: str


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """One file of an export."""

    test_top1: float
    """Percent."""
    test_n: int
    size_bytes: int
    p50_ms: float | None


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An export that has ended."""

    artifacts: dict[str, ExportedFile]
    """By precision."""
    verdict: str
    int8_error: str | None
    """Why there is no INT8 file."""


@dataclass(frozen=True, kw_only=True)
class MeasuredFile:
    """What one file costs in use."""

    latency_ms: float | None
    """Median of one image on one thread."""
    n: int
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """How many times faster INT8 is than fp32."""

    ratio: float
    ci95: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The measurement of an export."""

    artifacts: dict[str, MeasuredFile]
    """By precision."""
    int8_speedup: Speedup | None
    cpu: str


Result = Trained | Exported | Measured
"""What a sweep keeps; of a probe it keeps a summary."""
RESULTS: dict[str, type[Trained | Exported | Measured]] = {"train": Trained, "export": Exported, "measure": Measured}
