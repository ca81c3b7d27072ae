"""Timing of the candidates of ``qdeploy tune`` in turn, in one process; those surely slower drop out."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

from qdeploy.bench import sample_images
from qdeploy.bench.rounds import queries_of, time_ms
from qdeploy.bench.tune.candidate import Candidate
from qdeploy.bench.tune.limits import Limits
from qdeploy.core.metrics import MIN_SAMPLES
from qdeploy.core.progress import NamedProgress

BLOCK, BLOCK_MS = 10, 100.0
"""Consecutive calls of one candidate: so many, or what fits into so much time."""
WARMUP = 5
FIRST_CUT = 7
"""Rounds before the first candidate may drop out."""
HOPELESS = 3.0
"""Times the leader's fastest call that a candidate's may take in the first round."""
ENOUGH = 700
WORTH = 1.03
"""Another choice must be surely faster by so much to be preferred to a simpler one."""


def race(candidates: Sequence[Candidate], limits: Limits, seconds: float, progress: NamedProgress) -> None:
    """Time candidates in alternating blocks until one is left, all have run enough, or time is up.

    Only who is within the limits leaves others behind.
    """
    runs = {id(t): _call(t) for t in candidates}
    running = list(candidates)
    begin = time.perf_counter()
    for count in range(1, ENOUGH // BLOCK + 1):
        for candidate in running:
            candidate.rounds.append(_block(runs[id(candidate)]))
        if count == 1 or count >= FIRST_CUT:
            running = [t for t in running if not _behind(t, _leader(running, limits), first=count == 1)]
        spent = time.perf_counter() - begin
        progress(int(min(spent, seconds) * 10), int(seconds * 10), f"timing {len(running)} of {len(candidates)}")
        alone = len(running) == 1 and running[0].n >= MIN_SAMPLES[95]
        if alone or (spent > seconds and count > 1):
            return


def _leader(running: Sequence[Candidate], limits: Limits) -> Candidate | None:
    able = [t for t in running if limits.broken(t) is None]
    return min(able, key=lambda t: t.p50_ms, default=None)


def _behind(candidate: Candidate, leader: Candidate | None, first: bool) -> bool:
    if leader is None or candidate is leader:
        return False
    if first:
        return min(candidate.rounds[0]) > HOPELESS * min(leader.rounds[0])
    return candidate.against(leader)[1] > WORTH


def _call(candidate: Candidate) -> Callable[[], float]:
    """Return a function that times one call, on other images each time, and warm up."""
    session, images = candidate.session, sample_images(candidate.artifact.card.preprocessing)
    if session is None:
        raise ValueError("the candidate is not open")
    query, numbers = queries_of(session, images, candidate.batch, candidate.batch), itertools.count()

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
