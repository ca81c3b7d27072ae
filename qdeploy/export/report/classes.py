"""Class by class: what share of each class' test images every file recognises, and whom it takes for whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qdeploy.core.figures import matrix
from qdeploy.core.html import Markup, table, tag
from qdeploy.core.words import percent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qdeploy.export.report.record import Confusion

MOST_IN_MATRIX = 24
"""Classes of the largest matrix that is shown; of more, a reader would see nothing."""


def class_sections(confusion: Confusion | None) -> list[Markup]:
    """Show the table and the matrix; nothing where there were no labelled test images."""
    if confusion is None:
        return []
    last = confusion.fp32 if confusion.int8 is None else confusion.int8
    name = "fp32" if confusion.int8 is None else "INT8"
    head = ("class", "images", "fp32 right", "INT8 right", f"{name} takes it most often for")
    order = np.argsort([_recall(last, i) for i in range(len(confusion.labels))], kind="stable")
    words = f"Of the test images. The least recognised stand first; a class of few images says little. Matrix: {name}."
    grid = [matrix(confusion.labels, last.tolist())] if len(confusion.labels) <= MOST_IN_MATRIX else []
    return [
        tag("h2", "Class by class"),
        tag("p", words, class_="small"),
        table(head, [_row(confusion, last, int(i)) for i in order]),
        *([tag("h3", f"What {name} mistakes for what"), *grid] if grid else []),
    ]


def _row(confusion: Confusion, last: NDArray[np.int64], i: int) -> list[str]:
    wrong = last[i].copy()
    wrong[i] = 0
    most = int(wrong.argmax())
    return [
        confusion.labels[i],
        str(int(last[i].sum())),
        percent(_recall(confusion.fp32, i)),
        "-" if confusion.int8 is None else percent(_recall(confusion.int8, i)),
        f"{confusion.labels[most]} ({wrong[most]})" if wrong[most] else "",
    ]


def _recall(counts: NDArray[np.int64], i: int) -> float:
    return float(counts[i, i]) / max(1, int(counts[i].sum()))
