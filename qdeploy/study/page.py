"""The files that a sweep leaves besides its trials: ``sweep.json``, ``sweep.csv``, ``sweep.html``, ``pareto.png``."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from qdeploy.core.files import write_bytes, write_rendered
from qdeploy.core.html import Markup, page, table, tag
from qdeploy.core.intervals import wilson_interval
from qdeploy.core.progress import Note
from qdeploy.study.pareto import Point
from qdeploy.study.record import Record
from qdeploy.study.rows import Row, csv_of, pareto_of, rows_of

_STYLE = """
body{font:14px/1.5 system-ui,sans-serif;max-width:90rem;margin:2rem auto;padding:0 1rem;color:#1c2430}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}img{max-width:100%}
table{border-collapse:collapse}th,td{text-align:right;padding:.25rem .5rem;border-bottom:1px solid #d8dee6}
th:first-child,td:first-child,td:last-child{text-align:left}
.front{background:#eef4ee}.failed{color:#a03c2c}
.note{background:#eef2f7;border-left:4px solid #3b6ea8;padding:.6rem 1rem}
"""
_UNITS = {"latency": ("ms", 1.0, 3), "size": ("kB", 1e-3, 0), "params": ("parameters", 1.0, 0)}


def write_tables(record: Record, note: Note) -> None:
    """Write all four, each whole or not at all; first what holds the results, ``sweep.json`` and ``sweep.csv``.

    Args:
        record: State of the sweep.
        note: Told why the picture or the page could not be made.
    """
    rows = rows_of(record)
    pareto = pareto_of(rows)
    record.save(trials=[asdict(r) for r in rows], pareto=[asdict(p) for p in pareto])
    write_bytes(record.folder / "sweep.csv", csv_of(rows))
    picture = _picture(record, rows, note)
    write_rendered(record.folder / "sweep.html", lambda: html_page(record, rows, pareto, picture).encode(), note)


def _picture(record: Record, rows: Sequence[Row], note: Note) -> bytes | None:
    """Draw ``pareto.png``, or take the present one where no point of it has changed."""
    path = record.folder / "pareto.png"

    def draw() -> bytes:
        if path.is_file() and record.steps and record.steps[-1].kind == "train":
            return path.read_bytes()
        from qdeploy.study.picture import draw_pareto  # Matplotlib may be missing or broken: the results stay

        return draw_pareto(rows, title_of(record))

    return write_rendered(path, draw, note)


def title_of(record: Record) -> str:
    """Name a sweep: how many models, on what."""
    data = str(record.config.data).replace("\\", "/").rstrip("/").rpartition("/")[2]
    return f"{len(record.models)} models on {data}"


def html_page(record: Record, rows: Sequence[Row], pareto: Sequence[Point], picture: bytes | None) -> str:
    """Return the page: the picture, the fronts, the table. It needs no other file and runs no script."""
    title, shown = title_of(record), _sorted(rows)
    return page(
        title,
        _STYLE,
        tag("h1", title),
        tag("p", _summary(record, rows), class_="note"),
        *_drawn(picture),
        *(part for axis in _UNITS for part in _front(axis, [p for p in pareto if p.axis == axis])),
        tag("h2", "All models"),
        table(_HEAD, [_cells(r) for r in shown], row_kinds=[_class(r) for r in shown]),
        tag("h2", "Measured on"),
        tag("p", _machine(record.environment)),
    )


def _drawn(picture: bytes | None) -> list[Markup]:
    if picture is None:
        return [tag("p", "The picture could not be drawn.")]
    source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    legend = "Circles are fp32 files, squares INT8 files; filled ones are on the front. The colour tells the epochs."
    return [tag("img", alt="Pareto fronts", src=source), tag("p", legend)]


def _summary(record: Record, rows: Sequence[Row]) -> str:
    rungs = ", then ".join(f"{len(r.models)} models for {r.epochs} epoch(s)" for r in record.rungs)
    text = f"Recipe {record.config.recipe}, seed {record.config.seed}: {rungs}; {record.spent_s / 60:.1f} minutes"
    text += "." if record.complete else " so far; not complete."
    if len(record.rungs) > 1:
        text += " Models of different rungs were trained for different times: compare them with that in mind."
    best = max((r for r in rows if r.test_n), key=lambda r: r.test_top1_fp32 or 0.0, default=None)
    if best is not None and best.test_n:
        low, high = wilson_interval((best.test_top1_fp32 or 0.0) / 100, best.test_n)
        text += (
            f" Accuracy is of {best.test_n} test images: the best fp32 model's 95 % interval is "
            f"{100 * low:.1f} to {100 * high:.1f} %, and nearer neighbours are not told apart."
        )
    return text


def _front(axis: str, found: Sequence[Point]) -> list[Markup]:
    unit, scale, digits = _UNITS[axis]
    rows = [(p.name, p.precision, f"{p.top1:.2f}", f"{p.cost * scale:,.{digits}f}", str(p.epochs)) for p in found]
    head = ("model", "precision", "test top-1 %", unit, "epochs")
    return [tag("h2", f"Front of accuracy against {axis}"), table(head, rows)]


_HEAD = (
    "model", "parameters", "M MACs", "input", "rung", "epochs", "val top-1 %", "test fp32 %", "test int8 %", "n",
    "fp32 ms", "int8 ms", "runs", "int8 speed", "fp32 MB", "int8 MB", "fp32 kB", "int8 kB", "s/epoch", "fronts",
)  # fmt: skip


def _cells(r: Row) -> tuple[str, ...]:
    speed = "-"
    if r.int8_speedup is not None:
        speed = f"{r.int8_speedup:.2f}x ({r.int8_speedup_low:.2f} to {r.int8_speedup_high:.2f})"
    return (
        r.name,
        f"{r.params:,}",
        f"{r.macs / 1e6:.1f}",
        str(r.input_size),
        _number(r.rung),
        _number(r.epochs),
        _number(r.val_top1, 2),
        _number(r.test_top1_fp32, 2),
        _number(r.test_top1_int8, 2),
        _number(r.test_n),
        _number(r.latency_fp32_ms, 3),
        _number(r.latency_int8_ms, 3),
        _number(r.latency_n),
        speed,
        _number(r.peak_fp32_bytes, 0, 1e-6),
        _number(r.peak_int8_bytes, 0, 1e-6),
        _number(r.size_fp32_bytes, 0, 1e-3),
        _number(r.size_int8_bytes, 0, 1e-3),
        _number(r.epoch_s, 1),
        " ".join(part for part in (r.pareto, r.error) if part),
    )


def _number(value: float | None, digits: int = 0, scale: float = 1.0) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"


def _class(r: Row) -> str:
    return "failed" if r.error else "front" if r.pareto else ""


def _sorted(rows: Sequence[Row]) -> list[Row]:
    """The most accurate first, those without an accuracy last."""
    return sorted(rows, key=lambda r: -max(r.test_top1_fp32 or 0.0, r.test_top1_int8 or 0.0))


def _machine(environment: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in environment["versions"].items())
    return f"{environment['cpu']}, {environment['cores']} cores ({', '.join(environment['flags'])}); {versions}"
