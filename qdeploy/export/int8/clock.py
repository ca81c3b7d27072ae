"""Timing of choices of float layers in turn, with an estimate of the error of their ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qdeploy.bench.compare import student
from qdeploy.bench.rounds import BLOCK, LEAST_ROUNDS, Rounds, queries_of, time_ms, time_queries
from qdeploy.runtime.session import Session

WARMUP = 5
"""Runs of each session before it is timed; of the timed ones the quickest count."""
TIMING_SECONDS = 15.0
"""Time limit in seconds for all the runs of one timing: slow models get fewer runs."""
LEAST_SECONDS = 0.001
"""The same where the search has no time left: the fewest rounds are run."""

FloatNodes = frozenset[str]
"""Names of the nodes that are left in float."""
Clock = Callable[[Sequence[FloatNodes | None], Sequence[Session], int, float], Sequence[float]]
"""Returns the milliseconds of one run of each session. It is given what each leaves in float (None: it is the float
graph), the sessions, the runs of each, and the seconds after which no new round of runs begins."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of several sessions."""

    ms: tuple[float, ...]
    """Milliseconds of one run of each session."""
    noise: float
    """Share of a time below which two of them cannot be told apart: two standard errors of their ratio."""
    margin: float
    """The same where few openings are taken for no more than they are: Student's 95 % interval of a ratio."""


def real_clock(images_NSSC: NDArray[np.uint8]) -> Clock:
    """Return a clock that runs sessions in turn on single images out of ``[N, S, S, 3]``."""

    def clock(_: Sequence[FloatNodes | None], sessions: Sequence[Session], runs: int, seconds: float) -> list[float]:
        queries = [queries_of(session, images_NSSC, 1, 1) for session in sessions]
        warm_s = sum(time_ms(query(number)) for number in range(WARMUP) for query in queries) / 1e3
        limit = min(max(seconds, LEAST_SECONDS), TIMING_SECONDS)
        block = int(limit / LEAST_ROUNDS / (warm_s / WARMUP))
        return times_of(time_queries(queries, runs, limit, block=max(1, min(block, BLOCK))))

    return clock


def times_of(rounds: Sequence[Rounds]) -> list[float]:
    """Return the milliseconds of one run of each session.

    Of each block of runs the quickest counts, and of a session's blocks the median of how they compare with the other
    sessions' in the same round: whatever else runs on the machine only adds time, and adds it to neighbours alike.
    """
    quickest = np.log([[min(block) for block in mine] for mine in rounds])
    rounds_mean = quickest.mean(axis=0)
    return [float(ms) for ms in np.exp(np.median(quickest - rounds_mean, axis=1) + np.median(rounds_mean))]


def timing_of(openings: Sequence[Sequence[float]]) -> Timing:
    """Join the times that several openings of the same files gave.

    One file opened twice differs by up to 2 % in its time for as long as it stays open: other addresses, other cache
    lines. So openings are the sample that the standard error comes from.

    Args:
        openings: Milliseconds of each session, for each opening.
    """
    logs = np.log(np.asarray(openings, np.float64))
    count, sessions = logs.shape
    ms = tuple(float(ms) for ms in np.exp(logs.mean(axis=0)))
    freedom = (count - 1) * (sessions - 1)
    if not freedom:
        return Timing(ms=ms, noise=0.0, margin=0.0)
    centred = logs - logs.mean(axis=1, keepdims=True)  # an opening may be slower as a whole
    spread = np.square(centred - centred.mean(axis=0)).sum() / freedom
    error = float(np.sqrt(2 * spread / count))
    return Timing(ms=ms, noise=2 * error, margin=student(0.975, freedom) * error)


@dataclass(kw_only=True)
class Forecast:
    """How long the search takes: a guess from the first graph's runs, then the average of the graphs opened since."""

    limit_s: float
    opening_s: float = 0.0
    """What making and opening a graph takes."""
    image_s: float = 0.0
    """What running it on one image takes."""
    now: Callable[[], float] = time.perf_counter
    """Returns the time in seconds."""
    _begin: float = field(init=False)
    _planned: int = 0
    _opened: int = 0
    _since: float = 0.0
    _each_s: float = 0.0

    def __post_init__(self) -> None:
        self._begin = self.now()

    def plan(self, graphs: int, images: int) -> None:
        """Plan to open so many more graphs, and to run each on about so many images."""
        self._planned, self._opened, self._since = graphs, 0, self.passed_s()
        self._each_s = self.opening_s + min(images * self.image_s, TIMING_SECONDS)

    def opened(self, graphs: int) -> None:
        """Note that so many more graphs were opened and run."""
        self._opened += graphs

    def passed_s(self) -> float:
        """Return the seconds since the beginning."""
        return self.now() - self._begin

    def left_s(self) -> float:
        """Return the seconds until the limit."""
        return self.limit_s - self.passed_s()

    def total_s(self) -> float:
        """Return how many seconds all of it is expected to take, at most the limit."""
        few = 5  # before, the first graphs say little
        each_s = (self.passed_s() - self._since) / self._opened if self._opened >= few else self._each_s
        left_s = max(0, self._planned - self._opened) * each_s
        return max(self.passed_s(), min(self.limit_s, self.passed_s() + left_s))
