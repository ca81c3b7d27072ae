"""Results of the steps of a trial: probe, train, export and measure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What a few training steps tell."""

    epoch_s: float
    """Predicted seconds of an epoch with its two evaluations."""
    test_s: float
    """Predicted seconds of the last evaluation, on the test split."""
    stepping_s: float
    """Seconds that the probe itself has trained for."""
    images: dict[str, int]
    """Number of images of each split."""


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
    """Validation top-1 of the kept weights, in percent."""
    test_top1: float | None
    seconds: float
    """Seconds of training and validation."""
    images: dict[str, int]
    """Number of images of each split."""
    dataset: str
    dataset_sha256: str
    epoch_s: float | None = None
    """Seconds of training an epoch, mean of the last ten, without validation; None in older sweeps."""
    chance: float | None = None
    """Share of the largest class among the test images, in percent; None in older sweeps."""


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """One file of an export."""

    test_top1: float
    """Top-1 accuracy on the test split, in percent."""
    test_n: int
    size_bytes: int
    p50_ms: float | None
    precision: float | None = None
    """Precision on the test split, mean over the classes, in percent; None in older sweeps."""
    recall: float | None = None
    """Recall, likewise."""
    file: str | None = None
    """Its name; None in older sweeps: that of its precision."""
    flash_bytes: int | None = None
    """What it needs as a whole program on a Cortex-M; None if it cannot be one, and in older sweeps."""
    ram_bytes: int | None = None
    """RAM, likewise."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An export that has ended."""

    artifacts: dict[str, ExportedFile]
    """Files by precision: fp32, int8."""
    verdict: str
    int8_error: str | None
    """Why there is no INT8 file; None if there is one."""
    target: str | None = None
    """Encoding of the INT8 file; None in older sweeps."""


@dataclass(frozen=True, kw_only=True)
class MeasuredFile:
    """What one file costs in use."""

    latency_ms: float | None
    """Median latency of one image on one thread, in milliseconds."""
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
    """Measured files by precision: fp32, int8."""
    int8_speedup: Speedup | None
    cpu: str


Result = Trained | Exported | Measured
"""What a sweep keeps; of a probe it keeps a summary."""
RESULTS: dict[str, type[Trained | Exported | Measured]] = {"train": Trained, "export": Exported, "measure": Measured}
