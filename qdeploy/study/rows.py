"""The table of a sweep: one row a model."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

from qdeploy.core.cautions import at_chance, within_noise
from qdeploy.study.pareto import Point, fronts
from qdeploy.study.record import Record
from qdeploy.study.results import ExportedFile, MeasuredFile, Trained

AT_CHANCE = "at chance"


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


def rows_of(record: Record) -> list[Row]:
    """Make the table from what has ended so far."""
    rows = [_row(record, name) for name in record.models]
    places: dict[str, list[str]] = {r.name: [] for r in rows}
    for point in pareto_of(rows):
        places[point.name].append(f"{point.axis}:{point.precision}")
    return [replace(r, pareto=" ".join(places[r.name])) for r in rows]


def noise_of(rows: Sequence[Row]) -> str:
    """Say which models are as good as the best as far as one run of each can tell; empty if the best stands out."""
    known = [r for r in rows if r.test_top1_fp32 is not None and r.test_n and not r.learnt_nothing]
    if len({r.test_n for r in known}) != 1:
        return ""
    return within_noise({r.name: r.test_top1_fp32 or 0.0 for r in known}, known[0].test_n or 0)


def pareto_of(rows: Sequence[Row]) -> tuple[Point, ...]:
    """Return the fronts one after the other, the cheapest point of each axis first."""
    return tuple(point for points in fronts(rows).values() for point in points)


def _row(record: Record, name: str) -> Row:
    model, longest = record.models[name], record.longest(name)
    step, train = longest or (None, None)
    exported, measured = record.exported(name), record.measured(name)
    files: dict[str, ExportedFile] = exported.artifacts if exported else {}
    times: dict[str, MeasuredFile] = measured.artifacts if measured else {}
    speedup = measured.int8_speedup if measured else None
    fp32, int8, fast, faster = files.get("fp32"), files.get("int8"), times.get("fp32"), times.get("int8")
    return Row(
        name=name,
        family=train.family if train else model.family,
        params=train.params if train else model.params,
        macs=train.macs if train else model.macs,
        input_size=train.input_size if train else model.input_size,
        rung=step.rung + 1 if step else None,
        epochs=train.epochs if train else None,
        val_top1=train.val_top1 if train else None,
        test_top1_fp32=fp32.test_top1 if fp32 else None,
        test_top1_int8=int8.test_top1 if int8 else None,
        test_n=fp32.test_n if fp32 else None,
        precision_fp32=fp32.precision if fp32 else None,
        recall_fp32=fp32.recall if fp32 else None,
        precision_int8=int8.precision if int8 else None,
        recall_int8=int8.recall if int8 else None,
        latency_fp32_ms=fast.latency_ms if fast else None,
        latency_int8_ms=faster.latency_ms if faster else None,
        latency_n=fast.n if fast else None,
        int8_speedup=speedup.ratio if speedup else None,
        int8_speedup_low=speedup.ci95[0] if speedup else None,
        int8_speedup_high=speedup.ci95[1] if speedup else None,
        peak_fp32_bytes=fast.peak_bytes if fast else None,
        peak_int8_bytes=faster.peak_bytes if faster else None,
        size_fp32_bytes=fp32.size_bytes if fp32 else None,
        size_int8_bytes=int8.size_bytes if int8 else None,
        flash_int8_bytes=int8.flash_bytes if int8 else None,
        ram_int8_bytes=int8.ram_bytes if int8 else None,
        epoch_s=_epoch_s(train) if train else None,
        chance=train.chance if train else None,
        error=_error(record, name),
    )


def _epoch_s(train: Trained) -> float:
    return train.seconds / train.epochs if train.epoch_s is None else train.epoch_s


def _error(record: Record, name: str) -> str | None:
    """Return the first reason for which something of a model is missing."""
    if name in record.failed:
        return f"probe: {record.failed[name]}"
    for step in record.steps:
        if step.model == name and step.error is not None:
            return f"{step.kind}: {step.error}"
    exported = record.exported(name)
    return f"int8: {exported.int8_error}" if exported and exported.int8_error else None


def csv_of(rows: Sequence[Row]) -> bytes:
    """Return the table as CSV; unknown values are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([f.name for f in fields(Row)])
    for row in rows:
        writer.writerow([round(v, 4) if isinstance(v, float) else v for v in asdict(row).values()])
    return text.getvalue().encode()
