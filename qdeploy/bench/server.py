"""The server scenario: queries arrive on their own schedule, whether or not the last one is answered.

The arrival times are drawn before the run (Poisson, seeded), and latency counts from the time a query *should* have
been sent. So a service that hangs for a while shows it in every query that had to wait, not in one: no coordinated
omission. One session answers in the order of arrival.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qdeploy.bench.rounds import Query, time_ms
from qdeploy.core.errors import QdeployError
from qdeploy.core.metrics import MIN_SAMPLES, percentile
from qdeploy.core.progress import Progress

SPIN_S = 0.0005
"""The last part of a wait is spent awake: the system's timer is late by tenths of a millisecond."""
KEEPING_UP = 0.95
"""Share of the arrival rate at which queries must be answered; below, the queue only grows."""
STEPS = 7
"""Halvings of the range of rates: the answer is exact to a hundredth of what the model can do at most."""
STEP_BACK = 0.9
"""Factor by which the rate is lowered after each long run that fails."""
LONG_RUNS = 6
"""Long runs at most; if none keeps the bound, the machine is too restless for an answer."""
LEAST_RATE = 0.05
"""Lowest arrival rate that is tried, as a share of the most that the model can do."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """How a model did in the server scenario."""

    rate_per_s: float
    """Queries per second on schedule: as asked for, or the highest that kept the bound."""
    searched: bool
    keeping_up: float
    """Share of the arrival rate at which queries were answered; below 0.95 the rate is too high."""
    percentile: int
    percentile_ms: float | None
    """Latency at ``percentile``, in milliseconds; None where there are too few queries to state it."""
    bound_ms: float | None
    within_bound: bool | None
    """Whether the latency keeps the bound and the model the arrival rate; None without a bound or a percentile."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Queries answered on one schedule."""

    latencies_ms: list[float]
    """Latency of each query: from the time that it should have been sent to its answer."""
    due_s: float
    """Time in seconds at which the last query should have been sent."""

    @property
    def done_s(self) -> float:
        """Time in seconds at which the last query was answered."""
        return self.due_s + self.latencies_ms[-1] / 1e3


def arrivals(rate: float, count: int, seed: int) -> NDArray[np.float64]:
    """Draw the times in seconds at which so many queries arrive; the same seed gives the same pattern at any rate."""
    return np.cumsum(np.random.default_rng(seed).exponential(size=count)) / rate


def serve(query: Query, times_s: NDArray[np.float64], bound_ms: float = math.inf, allowed: int = 0) -> Stretch:
    """Answer queries that arrive at given times.

    Args:
        query: Prepares a numbered query of the model.
        times_s: When each should be sent, in seconds from now.
        bound_ms: A bound on the latency.
        allowed: Queries that may exceed it; after one more, the rest is left out.
    """
    latencies = []
    late = 0
    begin = time.perf_counter()
    for number, due in enumerate(times_s.tolist()):
        work = query(number)
        _wait_until(begin + due)
        work()
        latencies.append((time.perf_counter() - begin - due) * 1e3)
        late += latencies[-1] > bound_ms
        if late > allowed:
            break
    return Stretch(latencies_ms=latencies, due_s=float(times_s[len(latencies) - 1]))


def highest_rate(
    query: Query, percent: int, bound_ms: float, seconds: float, seed: int, progress: Progress
) -> tuple[float, Stretch]:
    """Search for the highest rate at which a percentile of the latency keeps a bound.

    Half of the time goes into halving the range of rates, the other half into one long run at the rate found, which is
    lowered until the bound is kept.

    Args:
        query: Prepares a numbered query of the model.
        percent: The percentile; each run has at least the queries that it needs.
        bound_ms: The bound in milliseconds.
        seconds: About how long the search takes.
        seed: Seed of the arrival times.
        progress: Called with the runs done, and their number.

    Returns:
        The rate in queries per second, and the long run.

    Raises:
        QdeployError: If no rate keeps the bound.
    """
    alone_ms = percentile([time_ms(query(i)) for i in range(MIN_SAMPLES[90])], 50)
    most = 1e3 / alone_ms
    low, high = LEAST_RATE * most, most
    for step in range(STEPS):
        rate = (low + high) / 2
        kept, _ = _try(query, rate, percent, bound_ms, seconds / 2 / STEPS, seed + step)
        low, high = (rate, high) if kept else (low, rate)
        progress(step + 1, STEPS + 1)
    for again in range(LONG_RUNS if low > LEAST_RATE * most else 0):
        rate = low * STEP_BACK**again
        kept, run = _try(query, rate, percent, bound_ms, seconds / 2, seed)
        if kept:
            progress(STEPS + 1, STEPS + 1)
            return rate, run
    raise QdeployError(
        f"no rate keeps p{percent} within {bound_ms:g} ms: one query alone takes {alone_ms:.2f} ms",
        fix="give a higher `latency_ms`, a faster model or a quieter machine",
    )


def served_of(
    runs: Sequence[Stretch], rate: float, percent: int, bound_ms: float | None, searched: bool = False
) -> Served:
    """Sum up a model's runs at one rate."""
    latencies = [t for run in runs for t in run.latencies_ms]
    tail = percentile(latencies, percent) if len(latencies) >= MIN_SAMPLES[percent] else None
    keeping_up = sum(r.due_s for r in runs) / sum(r.done_s for r in runs)
    return Served(
        rate_per_s=rate,
        searched=searched,
        keeping_up=keeping_up,
        percentile=percent,
        percentile_ms=tail,
        bound_ms=bound_ms,
        within_bound=None if bound_ms is None or tail is None else tail <= bound_ms and keeping_up >= KEEPING_UP,
    )


def _try(query: Query, rate: float, percent: int, bound_ms: float, seconds: float, seed: int) -> tuple[bool, Stretch]:
    """Tell whether a model answers as fast as queries come and within the bound."""
    count = max(MIN_SAMPLES[percent], round(rate * seconds))
    allowed = count - math.ceil(percent / 100 * count)
    run = serve(query, arrivals(rate, count, seed), bound_ms, allowed)
    late = sum(t > bound_ms for t in run.latencies_ms)
    return late <= allowed and run.due_s >= KEEPING_UP * run.done_s, run


def _wait_until(moment: float) -> None:
    left = moment - time.perf_counter()
    if left > SPIN_S:
        time.sleep(left - SPIN_S)
    while time.perf_counter() < moment:
        pass
