"""The plot of a sweep: accuracy against latency, file size and parameters, with the fronts."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from qdeploy.core.words import counted
from qdeploy.study.pareto import Point, front, points
from qdeploy.study.row import Row
from qdeploy.training.figure import Axes, Figure, FigureCanvasAgg, FuncFormatter, Line2D, LogLocator, NullFormatter

AXES = {
    "latency": ("latency, ms (one image, one thread)", 1.0),
    "size": ("file size, MB", 1e-6),
    "params": ("parameters, millions", 1e-6),
}
"""The label of each axis, and what its costs are multiplied with."""
COLOURS = ("#3b6ea8", "#c0562f", "#3a7d44")
"""Colour of each rung; later rungs have the last one."""
AT_CHANCE = "#b4bcc6"
"""Of files that are no better than answering the largest class."""
LOG_FROM = 5.0
"""Ratio of the largest to the smallest cost from which an axis is logarithmic."""
MARKERS = {"fp32": "o", "int8": "s"}
LABELLED = 12
"""Most names on a front; more would hide the points."""


def draw_pareto(rows: Sequence[Row], title: str) -> bytes:
    """Draw the fronts side by side, as a PNG.

    A circle is an fp32 file, a square an INT8 file; filled ones are on the front. The colour tells the rung; what is
    no better than chance is grey.
    """
    figure = Figure(figsize=(15, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(1, len(AXES), sharey=True)
    for axes, (axis, (label, scale)) in zip(panels, AXES.items(), strict=True):
        for p in points(rows, axis, at_chance=True):
            axes.plot(p.cost * scale, p.top1, MARKERS[p.precision], color=AT_CHANCE, markerfacecolor="none")
        _panel(axes, points(rows, axis), label, scale)
    panels[0].set_ylabel("test top-1, %")
    figure.legend(handles=_legend(rows), loc="outside lower center", ncols=6, fontsize=9)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def draw_learning(curves: Mapping[str, Sequence[float]], title: str) -> bytes:
    """Draw the validation top-1 of every model over its epochs into one picture (thesis, figure 6.1), as a PNG.

    Args:
        curves: Accuracy in percent of each epoch, by the model's name; the best ones are named.
        title: Written above.
    """
    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    best = sorted(curves, key=lambda name: -max(curves[name], default=0.0))
    for i, name in enumerate(best):
        label = name if i < LABELLED else None
        axes.plot(range(1, len(curves[name]) + 1), curves[name], linewidth=1.3, label=label, alpha=0.9)
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation top-1, %")
    axes.grid(alpha=0.3)
    if best:
        axes.legend(fontsize=8)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _panel(axes: Axes, found: Sequence[Point], label: str, scale: float) -> None:
    best = front(found)
    for p in found:
        colour = COLOURS[min(p.rung, len(COLOURS)) - 1]
        fill = colour if p in best else "none"
        axes.plot(p.cost * scale, p.top1, MARKERS[p.precision], color=colour, markerfacecolor=fill, markersize=6)
    if best:
        axes.step([p.cost * scale for p in best], [p.top1 for p in best], where="post", color="#1c2430", linewidth=1)
        _scale(axes, [p.cost for p in found])
    else:
        axes.text(0.5, 0.5, "not measured yet", transform=axes.transAxes, ha="center")
    named = best[-LABELLED:]
    for number, p in enumerate(named, 1):
        place = (p.cost * scale, p.top1)
        axes.annotate(str(number), place, xytext=(0, 6), textcoords="offset points", fontsize=8, ha="center")
    names = "\n".join(f"{number} {p.name} {p.precision}" for number, p in enumerate(named, 1))
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "#9aa6b2"}
    if named:
        axes.text(0.98, 0.03, names, transform=axes.transAxes, fontsize=7, ha="right", va="bottom", bbox=box)
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)


def _scale(axes: Axes, costs: Sequence[float]) -> None:
    if max(costs) < LOG_FROM * min(costs):
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _legend(rows: Sequence[Row]) -> list[Line2D]:
    shown = [
        Line2D([], [], marker=marker, linestyle="none", color="#1c2430", markerfacecolor="none", label=precision)
        for precision, marker in MARKERS.items()
    ]
    rungs = sorted({(r.rung, r.epochs) for r in rows if r.rung and r.epochs})
    for rung, epochs in rungs:
        colour = COLOURS[min(rung, len(COLOURS)) - 1]
        shown.append(Line2D([], [], marker="o", linestyle="none", color=colour, label=counted(epochs, "epoch")))
    if any(r.at_chance(precision) for r in rows for precision in MARKERS):
        shown.append(Line2D([], [], marker="o", linestyle="none", color=AT_CHANCE, label="no better than chance"))
    return shown
