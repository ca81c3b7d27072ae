"""The Pareto fronts of a sweep: artifacts that no other beats in accuracy against latency, file size and parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qdeploy.study.row import Row

COSTS = {"latency": "latency_{}_ms", "size": "size_{}_bytes", "params": "params"}
"""The axes of cost, and the column of a row that holds it for a precision."""
PRECISIONS = ("int8", "fp32")
"""Precisions in the order of preference where accuracy and cost are equal."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One artifact of one model, seen from one axis of cost."""

    axis: str
    """latency, size or params."""
    name: str
    precision: str
    rung: int
    epochs: int
    top1: float
    """Top-1 accuracy on the test split, in percent."""
    cost: float
    """Milliseconds, bytes or parameters."""


def points(rows: Sequence[Row], axis: str, *, at_chance: bool = False) -> list[Point]:
    """Return every artifact that has an accuracy and a cost on an axis; a failed or unfinished one has not.

    Artifacts that are no better than chance are on no front; ``at_chance`` returns those instead of the others.
    """
    found = []
    for row in rows:
        for precision in PRECISIONS:
            if row.at_chance(precision) is not at_chance:
                continue
            top1, cost = getattr(row, f"test_top1_{precision}"), getattr(row, COSTS[axis].format(precision))
            if row.rung is not None and row.epochs is not None and top1 is not None and cost is not None:
                found.append(
                    Point(
                        axis=axis,
                        name=row.name,
                        precision=precision,
                        rung=row.rung,
                        epochs=row.epochs,
                        top1=top1,
                        cost=cost,
                    )
                )
    return found


def front(candidates: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats, from the cheapest to the most accurate.

    One point beats another if it is at least as accurate at no more cost, and better in one of the two. Of points
    that are equal in both the first counts.
    """
    best: list[Point] = []
    for point in sorted(candidates, key=lambda p: (p.cost, -p.top1)):  # stable: equals keep their order
        if not best or point.top1 > best[-1].top1:
            best.append(point)
    return best


def fronts(rows: Sequence[Row]) -> dict[str, list[Point]]:
    """Return the front of each axis of cost."""
    return {axis: front(points(rows, axis)) for axis in COSTS}
