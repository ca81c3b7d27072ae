"""One row of a sweep's table."""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.core.cautions import at_chance


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model with everything measured of its longest training; what is not known (yet) is None."""

    name: str
    family: str
    params: int
    macs: int
    """Multiply-accumulates of one image."""
    input_size: int
    rung: int | None
    """How far it came in halving, from 1; models of different rungs were trained for different times."""
    epochs: int | None
    val_top1: float | None
    """Validation top-1 in percent, by which halving decides."""
    test_top1_fp32: float | None
    """Test top-1 of the exported file, in percent."""
    test_top1_int8: float | None
    test_n: int | None
    """Number of test images of the two test accuracies."""
    precision_fp32: float | None
    """Precision on the test images, mean over the classes, in percent."""
    recall_fp32: float | None
    """Recall, likewise."""
    precision_int8: float | None
    recall_int8: float | None
    latency_fp32_ms: float | None
    """Median latency of one image on one thread, in milliseconds."""
    latency_int8_ms: float | None
    latency_n: int | None
    """Number of timed inferences of each file."""
    int8_speedup: float | None
    """How many times faster INT8 is than fp32, from blocks measured in turn."""
    int8_speedup_low: float | None
    """Lower end of the 95 % interval of ``int8_speedup``."""
    int8_speedup_high: float | None
    peak_fp32_bytes: int | None
    """Largest resident size of a fresh process that opens the file and runs it once."""
    peak_int8_bytes: int | None
    size_fp32_bytes: int | None
    size_int8_bytes: int | None
    flash_int8_bytes: int | None = None
    """Flash of the INT8 file as a whole program on a Cortex-M; None if it cannot be one."""
    ram_int8_bytes: int | None = None
    """RAM, likewise."""
    epoch_s: float | None
    """Seconds of training an epoch, mean of the last ten, without validation; older sweeps: of all, with validation."""
    chance: float | None = None
    """Test top-1 in percent of always answering the largest class."""
    pareto: str = ""
    """The fronts that the model's files are on, e.g. ``latency:int8 size:int8``."""
    error: str | None = None
    """Why something is missing, if it failed."""

    def at_chance(self, precision: str) -> bool:
        """Tell whether a file's accuracy is not shown to be better than answering the largest class."""
        top1 = self.test_top1_fp32 if precision == "fp32" else self.test_top1_int8
        if top1 is None or not self.test_n or self.chance is None:
            return False
        n = self.test_n
        return at_chance(top1 / 100 * n, n, self.chance / 100 * n)

    @property
    def learnt_nothing(self) -> bool:
        """Whether no file of the model is better than chance, and one was measured."""
        return self.test_n is not None and all(
            self.at_chance(p) for p in ("fp32", "int8") if getattr(self, f"test_top1_{p}") is not None
        )
