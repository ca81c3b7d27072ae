"""One way to run a model that ``qdeploy tune`` tries, and what is measured of it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from qdeploy.bench import compare
from qdeploy.bench.fresh import Fresh
from qdeploy.core.artifact import Artifact
from qdeploy.core.intervals import PairedDifference
from qdeploy.core.metrics import MIN_SAMPLES, percentile
from qdeploy.runtime.session import Session


@dataclass(kw_only=True)
class Candidate:
    """One candidate and what was measured of it."""

    artifact: Artifact
    engine: str
    threads: int
    batch: int
    session: Session | None = None
    rejected: str | None = None
    """Why the candidate is ruled out without being timed; None if it is timed."""
    difference: PairedDifference | None = None
    """Top-1 of the file minus that of the fp32 file, in points; None where a card does not tell."""
    peak_rss_bytes: int | None = None
    rounds: list[list[float]] = field(default_factory=list)
    """Latencies in milliseconds."""
    runs_on: str | None = None
    """The engine that runs, in the words of the opened session; None if it was not opened."""

    @property
    def precision(self) -> str:
        """Precision of the file: fp32, fp16 or int8."""
        return self.artifact.card.precision

    @property
    def drop_points(self) -> float | None:
        """Points of top-1 that the file loses against the fp32 file; None where a card does not tell."""
        return -self.difference.points + 0.0 if self.difference else None

    @property
    def samples(self) -> list[float]:
        """All latencies in milliseconds."""
        return [t for block in self.rounds for t in block]

    @property
    def n(self) -> int:
        """Number of timed calls."""
        return sum(map(len, self.rounds))

    @property
    def p50_ms(self) -> float:
        """Median time of one call, in milliseconds."""
        return percentile(self.samples, 50)

    @property
    def p95_ms(self) -> float | None:
        """95th percentile of the time of one call, in milliseconds; None where there are too few calls to state it."""
        return percentile(self.samples, 95) if self.n >= MIN_SAMPLES[95] else None

    @property
    def tail_ms(self) -> float:
        """95th percentile of the time of one call, in milliseconds; the slowest call where that cannot be stated."""
        return self.p95_ms or max(self.samples)

    @property
    def throughput_per_s(self) -> float:
        """Images per second, from the mean latency."""
        return self.batch * 1000.0 / statistics.fmean(self.samples)

    def against(self, other: Candidate) -> tuple[float, float, float]:
        """Return the time of one call divided by the other's, with its 95 % interval, from the rounds both ran."""
        if other is self:
            return 1.0, 1.0, 1.0
        both = min(len(self.rounds), len(other.rounds))
        if both < 2:
            ratio = statistics.median(self.rounds[0]) / statistics.median(other.rounds[0])
            return ratio, ratio, ratio
        found = compare("", "", other.rounds[:both], self.rounds[:both])
        return found.ratio, *found.ci95

    def measure_memory(self) -> None:
        """Take the peak of a fresh process that opens the file and runs one batch, once.

        Raises:
            QdeployError: If it fails there.
        """
        if self.peak_rss_bytes is None:
            fresh = Fresh(
                path=self.artifact.path.absolute(),
                engine=self.engine,
                threads=self.threads,
                batch=self.batch,
                quick=True,
                library=False,  # nobody asked for it by name
            )
            self.peak_rss_bytes = int(fresh.probe()["peak_rss_bytes"])

    def close(self) -> None:
        """Close the session."""
        if self.session:
            self.session.close()
            self.session = None
