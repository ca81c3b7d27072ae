"""The table of a sweep: one row a model."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields, replace

from qdeploy.core.cautions import within_noise
from qdeploy.study.pareto import Point, fronts
from qdeploy.study.record import Record
from qdeploy.study.results import ExportedFile, MeasuredFile, Trained
from qdeploy.study.row import Row

AT_CHANCE = "at chance"


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
