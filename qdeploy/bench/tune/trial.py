"""Candidates of ``qdeploy tune`` racing in one process."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qdeploy.bench import compare, sample_images
from qdeploy.bench.fresh import Fresh
from qdeploy.bench.rounds import queries_of, time_ms
from qdeploy.bench.tune.limits import Limits
from qdeploy.core.artifact import Artifact
from qdeploy.core.intervals import PairedDifference
from qdeploy.core.metrics import MIN_SAMPLES, percentile
from qdeploy.runtime.session import Session

BLOCK, BLOCK_MS = 10, 100.0
"""Consecutive calls of one candidate: so many, or what fits into so much time."""
WARMUP = 5
FIRST_CUT = 7
"""Rounds before anyone is left behind."""
HOPELESS = 3.0
"""Times the leader's fastest call that a candidate's may take in the first round."""
ENOUGH = 700
WORTH = 1.03
"""Another choice must be surely faster by so much to be preferred to a simpler one."""


@dataclass(kw_only=True)
class Trial:
    """One candidate and what is known of it."""

    artifact: Artifact
    engine: str
    threads: int
    batch: int
    session: Session | None = None
    rejected: str | None = None
    """Why it is out before it was timed."""
    difference: PairedDifference | None = None
    """Its top-1 minus that of the fp32 file; None where a card does not tell."""
    peak_rss_bytes: int | None = None
    rounds: list[list[float]] = field(default_factory=list)
    """Latencies in milliseconds."""
    runs_on: str | None = None
    """What the opened session said it runs."""

    @property
    def precision(self) -> str:
        """Of the file."""
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
        """Timed calls."""
        return sum(map(len, self.rounds))

    @property
    def p50_ms(self) -> float:
        """Median of one call."""
        return percentile(self.samples, 50)

    @property
    def p95_ms(self) -> float | None:
        """95th percentile of one call; None where there are too few calls to state it."""
        return percentile(self.samples, 95) if self.n >= MIN_SAMPLES[95] else None

    @property
    def tail_ms(self) -> float:
        """95th percentile, or where that cannot be stated the slowest call."""
        return self.p95_ms or max(self.samples)

    @property
    def throughput_per_s(self) -> float:
        """Images per second, from the mean latency."""
        return self.batch * 1000.0 / statistics.fmean(self.samples)

    def against(self, other: Trial) -> tuple[float, float, float]:
        """Give the time of one call divided by the other's, with its 95 % interval, from the rounds both ran."""
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
            )
            self.peak_rss_bytes = int(fresh.probe()["peak_rss_bytes"])

    def close(self) -> None:
        """Close the session."""
        if self.session:
            self.session.close()
            self.session = None


def race(trials: Sequence[Trial], limits: Limits, seconds: float, tick: Callable[[int, int, str], None]) -> None:
    """Time candidates in alternating blocks until one is left, all have run enough, or time is up.

    Only who is within the limits leaves others behind.
    """
    runs = {id(t): _call(t) for t in trials}
    running = list(trials)
    begin = time.perf_counter()
    for count in range(1, ENOUGH // BLOCK + 1):
        for trial in running:
            trial.rounds.append(_block(runs[id(trial)]))
        if count == 1 or count >= FIRST_CUT:
            running = [t for t in running if not _behind(t, _leader(running, limits), first=count == 1)]
        spent = time.perf_counter() - begin
        tick(int(min(spent, seconds) * 10), int(seconds * 10), f"timing {len(running)} of {len(trials)}")
        alone = len(running) == 1 and running[0].n >= MIN_SAMPLES[95]
        if alone or (spent > seconds and count > 1):
            return


def _leader(running: Sequence[Trial], limits: Limits) -> Trial | None:
    able = [t for t in running if limits.broken(t) is None]
    return min(able, key=lambda t: t.p50_ms, default=None)


def _behind(trial: Trial, leader: Trial | None, first: bool) -> bool:
    if leader is None or trial is leader:
        return False
    if first:
        return min(trial.rounds[0]) > HOPELESS * min(leader.rounds[0])
    return trial.against(leader)[1] > WORTH


def _call(trial: Trial) -> Callable[[], float]:
    """Give a function that times one call, on other images each time, and warm up."""
    session, images = trial.session, sample_images(trial.artifact.card.preprocessing)
    if session is None:
        raise ValueError("the candidate is not open")
    query, numbers = queries_of(session, images, trial.batch, trial.batch), itertools.count()

    def run() -> float:
        return time_ms(query(next(numbers)))

    for _ in range(WARMUP):
        run()
    return run


def _block(run: Callable[[], float]) -> list[float]:
    times = [run()]
    while len(times) < BLOCK and sum(times) < BLOCK_MS:
        times.append(run())
    return times
