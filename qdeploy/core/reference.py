"""What a card keeps of a file's own answers to the validation images, for comparison with later ones.

``qdeploy.core.drift`` compares. Standard library alone: every start of ``qdeploy predict`` reads it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

BINS = 10
"""Groups of equally many validation images in the histograms of score and confidence."""
MOST_COUNT = 2**53


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How often values fell between edges."""

    edges: tuple[float, ...]
    """Rising bounds; a value that is one belongs above it."""
    counts: tuple[int, ...]
    """Number of values below the first edge, between each two, and from the last on."""

    def place(self, value: float) -> int:
        """Return the number of the group that a value falls into."""
        return bisect_right(self.edges, value)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Histogram:
        """Rebuild from JSON.

        Raises:
            ValueError: If it is no histogram.
        """
        edges = tuple(float(e) for e in fields["edges"])
        counts = _counts(fields["counts"])
        rising = all(a < b for a, b in pairwise(edges)) and all(map(math.isfinite, edges))
        if not rising or len(counts) != len(edges) + 1:
            raise ValueError("a histogram takes rising edges, and one count more")
        return cls(edges=edges, counts=counts)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A file's own answers to the validation images."""

    score: Histogram
    """Of ``qdeploy.core.confidence.score``."""
    confidence: Histogram
    """Of the largest probability, in [0, 1]."""
    classes: tuple[int, ...]
    """How often each of the K classes was the most probable."""

    @property
    def n(self) -> int:
        """Number of validation images."""
        return sum(self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        histograms = {"score": self.score, "confidence": self.confidence}
        made = {name: {"edges": [*h.edges], "counts": [*h.counts]} for name, h in histograms.items()}
        return {**made, "classes": [*self.classes]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Reference:
        """Rebuild from ``to_dict``.

        Raises:
            ValueError: If the three are not histograms of the same images.
        """
        made = cls(
            score=Histogram.from_dict(fields["score"]),
            confidence=Histogram.from_dict(fields["confidence"]),
            classes=_counts(fields["classes"]),
        )
        if not made.n or not made.n == sum(made.score.counts) == sum(made.confidence.counts):
            raise ValueError("the histograms of a reference must be of the same images")
        return made


def _counts(values: Any) -> tuple[int, ...]:
    counts = tuple(values)
    if not all(type(c) is int and 0 <= c < MOST_COUNT for c in counts):
        raise ValueError("counts must be whole numbers from 0 on")
    return counts
