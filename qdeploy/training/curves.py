"""The plot of a run: accuracy, loss, learning rate and the controller's values over the epochs."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from qdeploy.training.figure import Axes, Figure, FigureCanvasAgg

PANELS = (
    ("top-1 (%)", ("train_top1", "val_top1", "ema_val_top1")),
    ("loss", ("train_loss", "val_loss")),
    ("learning rate", ("lr",)),
    ("confidence", ("confidence",)),
    ("momentum", ("momentum",)),
    ("EMA decay", ("ema",)),
    ("drop path", ("drop_path",)),
    ("reward (points)", ("reward",)),
    ("features", ("feature_mean", "feature_std")),
)


Panel = tuple[str, tuple[str, ...]]
ALWAYS = 2
"""The first panels are drawn in any case."""


def draw_curves(rows: Sequence[dict[str, Any]], title: str) -> bytes:
    """Draw the panels over the epochs, as a PNG; what happened in an epoch is a dotted line through all of them."""
    found = panels(rows)
    lines = 1 if len(found) < 4 else 2
    figure = Figure(figsize=(14, 3.2 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    places = figure.subplots(lines, -(-len(found) // lines), squeeze=False).flat
    for i, axes in enumerate(places):
        if i >= len(found):
            axes.set_axis_off()
            continue
        _panel(axes, rows, *found[i])
        for epoch, text in marks(rows):
            axes.axvline(epoch, color="#9aa6b2", linestyle=":", linewidth=1)
            if i == 0:
                top = axes.get_xaxis_transform()
                axes.text(epoch, 0.02, f" {text}", transform=top, rotation=90, fontsize=7, va="bottom", ha="right")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def panels(rows: Sequence[dict[str, Any]]) -> list[Panel]:
    """Return the panels to draw: not those of parts that are switched off, whose values never change."""
    return [p for i, p in enumerate(PANELS) if i < ALWAYS or any(_varies(rows, column) for column in p[1])]


def marks(rows: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    """Return the epochs in which something happened, and what."""
    return [(row["epoch"], row["events"]) for row in rows if row.get("events")]


def _varies(rows: Sequence[dict[str, Any]], column: str) -> bool:
    return len({row[column] for row in rows if row[column] is not None}) > 1


def _panel(axes: Axes, rows: Sequence[dict[str, Any]], label: str, columns: Sequence[str]) -> None:
    epochs = [row["epoch"] for row in rows]
    for column in columns:
        axes.plot(
            epochs,
            [math.nan if row[column] is None else row[column] for row in rows],
            label=column,
            linewidth=1.4,
            marker=".",
            markersize=3,
        )
    axes.set_title(label, fontsize=10)
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.3)
    if len(columns) > 1:
        axes.legend(fontsize=8)
