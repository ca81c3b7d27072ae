"""The table of a sweep: one row a model."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from qdeploy.study.pareto import Point, fronts
from qdeploy.study.record import Done, Record


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
    """Percent; what halving decides by."""
    test_top1_fp32: float | None
    """Percent, of the exported file."""
    test_top1_int8: float | None
    test_n: int | None
    """Images that the two test accuracies are over."""
    latency_fp32_ms: float | None
    """Median of one image on one thread."""
    latency_int8_ms: float | None
    latency_n: int | None
    """Timed runs of each."""
    int8_speedup: float | None
    """How many times faster INT8 is than fp32, from blocks measured in turn."""
    int8_speedup_low: float | None
    """Lower end of the 95 % interval of that."""
    int8_speedup_high: float | None
    peak_fp32_bytes: int | None
    """Largest resident size of a fresh process that opens the file and runs it once."""
    peak_int8_bytes: int | None
    size_fp32_bytes: int | None
    size_int8_bytes: int | None
    epoch_s: float | None
    """Training and validation of one epoch."""
    pareto: str = ""
    """The fronts that an artifact of it is on, e.g. ``latency:int8 size:int8``."""
    error: str | None = None
    """Why something is missing, if it failed."""


def rows_of(record: Record) -> list[Row]:
    """Make the table from what has ended so far."""
    rows = [_row(record, name) for name in record.models]
    places: dict[str, list[str]] = {r.name: [] for r in rows}
    for axis, found in fronts([asdict(r) for r in rows]).items():
        for point in found:
            places[point.name].append(f"{axis}:{point.precision}")
    return [replace(r, pareto=" ".join(places[r.name])) for r in rows]


def pareto_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Give the fronts as one list, the cheapest point of each axis first."""
    found: dict[str, list[Point]] = fronts([asdict(r) for r in rows])
    return [{"axis": axis, **asdict(p)} for axis, points in found.items() for p in points]


def _row(record: Record, name: str) -> Row:
    model, trained = record.models[name], record.longest(name)
    train = trained.result if trained else {}
    exported, measured = record.after("export", name), record.after("measure", name)
    files = (exported.result if exported else {}).get("artifacts", {})
    times = (measured.result if measured else {}).get("artifacts", {})
    speedup = (measured.result if measured else {}).get("int8_speedup") or {}
    fp32, int8 = files.get("fp32", {}), files.get("int8", {})
    fast, faster = times.get("fp32", {}), times.get("int8", {})
    low, high = speedup.get("ci95") or (None, None)
    return Row(
        name=name,
        family=train.get("family", model.family),
        params=train.get("params", model.params),
        macs=train.get("macs", model.macs),
        input_size=train.get("input_size", model.input_size),
        rung=trained.rung + 1 if trained else None,
        epochs=train.get("epochs"),
        val_top1=train.get("val_top1"),
        test_top1_fp32=fp32.get("test_top1"),
        test_top1_int8=int8.get("test_top1"),
        test_n=fp32.get("test_n"),
        latency_fp32_ms=fast.get("latency_ms"),
        latency_int8_ms=faster.get("latency_ms"),
        latency_n=fast.get("n"),
        int8_speedup=speedup.get("ratio"),
        int8_speedup_low=low,
        int8_speedup_high=high,
        peak_fp32_bytes=fast.get("peak_bytes"),
        peak_int8_bytes=faster.get("peak_bytes"),
        size_fp32_bytes=fp32.get("size_bytes"),
        size_int8_bytes=int8.get("size_bytes"),
        epoch_s=train["seconds"] / train["epochs"] if train else None,
        error=_error(record, name, exported),
    )


def _error(record: Record, name: str, exported: Done | None) -> str | None:
    """Give the first reason for which something of a model is missing."""
    if name in record.failed:
        return f"probe: {record.failed[name]}"
    for trial in record.trials:
        if trial.model == name and trial.error is not None:
            return f"{trial.kind}: {trial.error}"
    rejected = exported.result.get("int8_error") if exported else None
    return f"int8: {rejected}" if rejected else None


def csv_of(rows: Sequence[Row]) -> bytes:
    """Give the table as CSV; unknown values are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([f.name for f in fields(Row)])
    for row in rows:
        writer.writerow([round(v, 4) if isinstance(v, float) else v for v in asdict(row).values()])
    return text.getvalue().encode()
