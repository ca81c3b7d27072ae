"""The plot of a run: accuracy, loss, learning rate and the controller's values over the epochs."""

from __future__ import annotations

import io
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
)


def draw_curves(rows: Sequence[dict[str, Any]], title: str) -> bytes:
    """Draw accuracy, loss, learning rate, confidence, momentum and EMA decay over the epochs, as a PNG."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for axes, (label, columns) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        _panel(axes, rows, label, columns)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _panel(axes: Axes, rows: Sequence[dict[str, Any]], label: str, columns: Sequence[str]) -> None:
    epochs = [row["epoch"] for row in rows]
    for column in columns:
        axes.plot(epochs, [row[column] for row in rows], label=column, linewidth=1.4, marker=".", markersize=3)
    axes.set_title(label, fontsize=10)
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.3)
    if len(columns) > 1:
        axes.legend(fontsize=8)
