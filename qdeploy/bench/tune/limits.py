"""The limits of ``qdeploy tune``: latency, memory, throughput and accuracy."""

from __future__ import annotations

from dataclasses import dataclass, fields

from qdeploy.bench.tune.candidate import Candidate
from qdeploy.core.budget import AccuracyBudget, Shown
from qdeploy.core.errors import InputError
from qdeploy.core.words import rounded


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits that the choice must keep; None is no limit."""

    latency_ms: float | None = None
    """Limit on the 95th percentile of one call's time; where fewer than 130 calls ran, the slowest counts."""
    memory_mb: float | None = None
    """Limit on the peak memory of a fresh process, in 10^6 bytes."""
    max_drop: float = 1.0
    """Points of top-1 that may be lost against the fp32 file, as at export; unchecked where a card has no accuracy."""
    throughput: float | None = None
    """Least number of images per second."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None and not (value > 0 or (f.name == "max_drop" and value == 0)):
                raise InputError(f"`{f.name}` must be positive", found=value)

    @property
    def budget(self) -> AccuracyBudget:
        """The accuracy that may be lost."""
        return AccuracyBudget(points=self.max_drop)

    def broken_before_timing(self, candidate: Candidate) -> str | None:
        """Return which limit a candidate misses by memory or accuracy, before it is timed, or None."""
        found = self._memory(candidate)
        if candidate.difference and not self.budget.allows(candidate.difference):
            shown = self.budget.judge(candidate.difference)
            doubt = "" if shown is Shown.OVER else f"; {candidate.difference.n} images are too few to tell"
            found = f"drops {rounded(-candidate.difference.points, 2)} points, over {self.max_drop:g}{doubt}"
        return found

    def broken(self, candidate: Candidate) -> str | None:
        """Return which limit a measured candidate misses, or None."""
        if self.latency_ms is not None and candidate.tail_ms > self.latency_ms:
            return f"p95 {candidate.tail_ms:.3f} ms, over {self.latency_ms:g}"
        if self.throughput is not None and candidate.throughput_per_s < self.throughput:
            return f"{candidate.throughput_per_s:.0f} images/s, under {self.throughput:g}"
        return self.broken_before_timing(candidate)

    def excess(self, candidate: Candidate) -> float:
        """Return by what part a candidate misses its limits, summed over them; 0 is within."""
        pairs = [(candidate.drop_points, self.max_drop or 1e-9), (_mb(candidate), self.memory_mb)]
        if candidate.rounds:
            pairs += [(candidate.tail_ms, self.latency_ms)]
            pairs += [(self.throughput, candidate.throughput_per_s)] if self.throughput else []
        return sum(max(0.0, value / limit - 1) for value, limit in pairs if value is not None and limit is not None)

    def _memory(self, candidate: Candidate) -> str | None:
        used = _mb(candidate)
        if self.memory_mb is not None and used is not None and used > self.memory_mb:
            return f"{used:.0f} MB, over {self.memory_mb:g}"
        return None


def _mb(candidate: Candidate) -> float | None:
    return None if candidate.peak_rss_bytes is None else candidate.peak_rss_bytes / 1e6
