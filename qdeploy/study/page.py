"""The files that a sweep leaves besides its trials: ``sweep.json``, ``sweep.csv``, ``sweep.html``, ``pareto.png``."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from qdeploy.core.figures import Bar, Dot, quantities, scatter, verdict
from qdeploy.core.files import write_bytes, write_rendered
from qdeploy.core.html import Markup, page, table, tag
from qdeploy.core.intervals import wilson_interval
from qdeploy.core.machine import cpu_words
from qdeploy.core.page_style import STYLE
from qdeploy.core.progress import Note
from qdeploy.core.words import counted
from qdeploy.study.pareto import Point, points
from qdeploy.study.record import Record
from qdeploy.study.row import Row
from qdeploy.study.rows import AT_CHANCE, csv_of, noise_of, pareto_of, rows_of

_UNITS = {"latency": ("ms", 1.0, 3), "size": ("kB", 1e-3, 0), "params": ("parameters", 1.0, 0)}
_TITLES = {"latency": "latency of one image, ms", "size": "size of the file, kB", "params": "parameters"}


def write_tables(record: Record, note: Note) -> None:
    """Write all five, each whole or not at all; first what holds the results, ``sweep.json`` and ``sweep.csv``.

    Args:
        record: State of the sweep.
        note: Told why the picture or the page could not be made.
    """
    rows = rows_of(record)
    pareto = pareto_of(rows)
    record.save(trials=[asdict(r) for r in rows], pareto=[asdict(p) for p in pareto])
    write_bytes(record.folder / "sweep.csv", csv_of(rows))
    _picture(record, rows, note)
    if record.complete:
        write_rendered(record.folder / "learning.png", lambda: _learning(record), note)
    write_rendered(record.folder / "sweep.html", lambda: html_page(record, rows, pareto).encode(), note)


def _picture(record: Record, rows: Sequence[Row], note: Note) -> None:
    """Draw ``pareto.png``, or take the present one where no point of it has changed."""
    path = record.folder / "pareto.png"

    def draw() -> bytes:
        if path.is_file() and record.steps and record.steps[-1].kind == "train":
            return path.read_bytes()
        from qdeploy.study.picture import draw_pareto  # Matplotlib may be missing or broken: the results stay

        return draw_pareto(rows, title_of(record))

    write_rendered(path, draw, note)


def _learning(record: Record) -> bytes:
    from qdeploy.study.picture import draw_learning

    curves = {}
    for name in record.models:
        trained = record.longest(name)
        log = record.trial_folder(name) / f"run-{trained[0].rung}" / "log.csv" if trained else None
        if log and log.is_file():
            with log.open(newline="") as lines:
                curves[name] = [float(row["val_top1"]) for row in csv.DictReader(lines)]
    return draw_learning(curves, title_of(record))


def title_of(record: Record) -> str:
    """Name a sweep: how many models, on what."""
    data = str(record.config.data).replace("\\", "/").rstrip("/").rpartition("/")[2]
    return f"{len(record.models)} models on {data}"


def html_page(record: Record, rows: Sequence[Row], pareto: Sequence[Point]) -> str:
    """Return the page: the answer, plots, the fronts, the table. It needs no other file and runs no script."""
    title, shown = title_of(record), _sorted(rows)
    return page(
        title,
        STYLE,
        tag("h1", title),
        _answer(record, pareto),
        *_most_accurate(shown),
        tag("p", _summary(record, rows), class_="small"),
        *(part for axis in _UNITS for part in _front(axis, rows, [p for p in pareto if p.axis == axis])),
        tag("h2", "All models"),
        table(_HEAD, [_cells(r) for r in shown], row_kinds=[_class(r) for r in shown]),
        tag("h2", "Measured on"),
        tag("p", _machine(record.environment)),
        tag("p", "Everything as data: ", tag("a", "sweep.json", href="sweep.json")),
    )


def _answer(record: Record, pareto: Sequence[Point]) -> Markup:
    """Say which model to look at first, or that there is none yet."""
    found = [p for p in pareto if p.axis == "latency"]
    if not found:
        return verdict("wait" if not record.complete else "bad", "No model has been measured.")
    best, fastest = max(found, key=lambda p: p.top1), min(found, key=lambda p: p.cost)
    words = f"Most accurate: {best.name} ({best.precision}), {best.top1:.2f} % in {best.cost:.3g} ms."
    if fastest != best:
        words += f" Fastest: {fastest.name} ({fastest.precision}), {fastest.top1:.2f} % in {fastest.cost:.3g} ms."
    return verdict("good" if record.complete else "wait", words if record.complete else f"{words} Not complete.")


def _most_accurate(shown: Sequence[Row]) -> list[Markup]:
    """Show the four quantities of the most accurate model that was measured."""
    r = next((r for r in shown if r.latency_fp32_ms is not None), None)
    if r is None:
        return []
    kinds: tuple[tuple[str, str, float, Callable[[float], str]], ...] = (
        ("Accuracy, with its 95 % interval", "test_top1_{}", 1.0, lambda v: f"{v:.2f} %"),
        ("Latency of one image", "latency_{}_ms", 1.0, lambda v: f"{v:.3f} ms"),
        ("Size of the file", "size_{}_bytes", 1e-6, lambda v: f"{v:.2f} MB"),
        ("Peak memory of a process", "peak_{}_bytes", 1e-6, lambda v: f"{v:.0f} MB"),
    )
    given = []
    for title, column, scale, words in kinds:
        values = [(p, getattr(r, column.format(p))) for p in ("fp32", "int8")]
        bars = [
            Bar(
                name=p,
                precision=p,
                value=v * scale,
                words=words(v * scale),
                interval=_interval(v, r.test_n) if "top1" in column else None,
            )
            for p, v in values
            if v is not None
        ]
        given.append((title, bars))
    return [tag("h3", r.name), quantities(given)]


def _interval(top1: float, n: int | None) -> tuple[float, float] | None:
    if not n:
        return None
    low, high = wilson_interval(top1 / 100, n)
    return 100 * low, 100 * high


def _summary(record: Record, rows: Sequence[Row]) -> str:
    rungs = ", then ".join(f"{counted(len(r.models), 'model')} for {counted(r.epochs, 'epoch')}" for r in record.rungs)
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
    if text_of_noise := noise_of(rows):
        text += f" {text_of_noise[0].upper()}{text_of_noise[1:]}."
    return text


def _front(axis: str, rows: Sequence[Row], found: Sequence[Point]) -> list[Markup]:
    unit, scale, digits = _UNITS[axis]
    dots = [
        Dot(name=f"{p.name} {p.precision}", x=p.cost * scale, y=p.top1, precision=p.precision, best=p in found)
        for p in points(rows, axis)
    ]
    lines = [(p.name, p.precision, f"{p.top1:.2f}", f"{p.cost * scale:,.{digits}f}", str(p.epochs)) for p in found]
    head = ("model", "precision", "test top-1 %", unit, "epochs")
    label = f"Front of accuracy against {axis}"
    plot = [scatter(dots, _TITLES[axis], "test top-1, %", label)] if dots else []
    words = "Filled points are on the front: nothing measured is more accurate at no more cost."
    return [tag("h2", label), *plot, tag("p", words, class_="small"), table(head, lines)]


_HEAD = (
    "model", "parameters", "M MACs", "input", "rung", "epochs", "val top-1 %", "test fp32 %", "test int8 %", "n",
    "fp32 precision %", "fp32 recall %", "int8 precision %", "int8 recall %",
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
        _number(r.precision_fp32, 2),
        _number(r.recall_fp32, 2),
        _number(r.precision_int8, 2),
        _number(r.recall_int8, 2),
        _number(r.latency_fp32_ms, 3),
        _number(r.latency_int8_ms, 3),
        _number(r.latency_n),
        speed,
        _number(r.peak_fp32_bytes, 0, 1e-6),
        _number(r.peak_int8_bytes, 0, 1e-6),
        _number(r.size_fp32_bytes, 0, 1e-3),
        _number(r.size_int8_bytes, 0, 1e-3),
        _number(r.epoch_s, 1),
        " ".join(part for part in (r.pareto, AT_CHANCE if r.learnt_nothing else "", r.error) if part),
    )


def _number(value: float | None, digits: int = 0, scale: float = 1.0) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"


def _class(r: Row) -> str:
    return "failed" if r.error else "front" if r.pareto else "chance" if r.learnt_nothing else ""


def _sorted(rows: Sequence[Row]) -> list[Row]:
    """The most accurate first, those without an accuracy last."""
    return sorted(rows, key=lambda r: -max(r.test_top1_fp32 or 0.0, r.test_top1_int8 or 0.0))


def _machine(environment: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in environment["versions"].items())
    return f"{cpu_words(environment)}; {versions}"
