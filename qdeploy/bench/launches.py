"""Runs a scenario: every model is opened anew several times, and all of them take turns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qdeploy.bench.config import LAUNCHES, BenchConfig
from qdeploy.bench.rounds import BLOCK, Query, Rounds, queries_of, time_queries, time_rounds, warm_up
from qdeploy.bench.server import Served, Stretch, arrivals, highest_rate, serve, served_of
from qdeploy.bench.watch import Watch
from qdeploy.core.artifact import Artifact
from qdeploy.core.progress import Progress
from qdeploy.runtime.session import Session, open_session


@dataclass(kw_only=True)
class Subject:
    """One model with one engine, and what was measured of it."""

    name: str
    artifact: Artifact
    engine: str
    """A key of ``ENGINES``."""
    images: NDArray[np.uint8]
    """``[64, S, S, 3]``"""
    launches: list[Rounds] = field(default_factory=list)
    """The rounds of latencies, in milliseconds, of each time that the model was opened."""
    ran: str = ""
    """The engine that ran, in the words of the opened session."""
    served: Served | None = None

    def open(self, config: BenchConfig) -> Session:
        """Open the model; its answers are checked against its goldens before its speed counts."""
        session = open_session(self.artifact, self.engine, config.threads)
        self.ran = session.engine
        return session

    @property
    def rounds(self) -> Rounds:
        """The rounds of all launches."""
        return joined(self.launches)

    @property
    def samples(self) -> list[float]:
        """All latencies in milliseconds, in the order of time."""
        return [t for block in self.rounds for t in block]


def joined(launches: Sequence[Rounds]) -> Rounds:
    """Return the rounds of all openings, in the order of time."""
    return [block for rounds in launches for block in rounds]


def run_scenario(subjects: Sequence[Subject], config: BenchConfig, watch: Watch, progress: Progress) -> None:
    """Measure all models and leave what was found with them."""
    if config.scenario == "server" and config.rate is None:
        _search(subjects, config, watch, progress)
        return
    stretches: dict[str, list[Stretch]] = {s.name: [] for s in subjects}
    for launch in range(config.launches):
        # the order of opening alternates: who comes first may get the better place in memory
        turns = list(subjects) if launch % 2 == 0 else list(reversed(subjects))
        with ExitStack() as stack:
            queries = [_ready(s, stack.enter_context(s.open(config)), config, launch == 0) for s in turns]
            with watch:
                if config.rate is not None:
                    _serve(turns, queries, config, launch, stretches)
                else:
                    _closed_loop(turns, queries, config)
        progress(launch + 1, config.launches)
    if config.rate is not None:
        for s in subjects:
            s.served = served_of(stretches[s.name], config.rate, config.latency_percentile, config.latency_ms)


def time_launches(
    artifacts: Sequence[Artifact], images_NSSC: NDArray[np.uint8], runs: int, seconds: float
) -> list[list[Rounds]]:
    """Time models of one input size, batch 1 and their default threads, opened anew ten times and in turn.

    Args:
        artifacts: The models.
        images_NSSC: What they are given.
        runs: Timed calls of each, over all openings; rounded up to whole rounds.
        seconds: About the time limit of all.

    Returns:
        For each model, its rounds of latencies in milliseconds by opening.
    """
    launches: list[list[Rounds]] = [[] for _ in artifacts]
    for launch in range(LAUNCHES):
        turns = list(zip(artifacts, launches, strict=True))[:: 1 if launch % 2 == 0 else -1]
        with ExitStack() as stack:
            sessions = [stack.enter_context(open_session(a, selftest=False)) for a, _ in turns]
            found = time_rounds(sessions, [images_NSSC] * len(turns), math.ceil(runs / LAUNCHES), seconds / LAUNCHES)
        for (_, mine), rounds in zip(turns, found, strict=True):
            mine.append(rounds)
    return launches


def _ready(subject: Subject, session: Session, config: BenchConfig, first: bool) -> Query:
    query = queries_of(session, subject.images, config.samples, config.batch)
    warm_up(query, config.warmup_s if first else 0.0)
    return query


def _closed_loop(turns: Sequence[Subject], queries: Sequence[Query], config: BenchConfig) -> None:
    runs = None if config.runs is None else math.ceil(config.runs / config.launches)
    block = 1 if config.scenario == "offline" else BLOCK
    found = time_queries(queries, runs, config.limit_s / config.launches, block=block, least=1)
    for subject, rounds in zip(turns, found, strict=True):
        subject.launches.append(rounds)


def _serve(
    turns: Sequence[Subject],
    queries: Sequence[Query],
    config: BenchConfig,
    launch: int,
    stretches: dict[str, list[Stretch]],
) -> None:
    """Serve one part of the schedule with every model, one after the other: all get the same arrival times."""
    assert config.rate is not None
    wanted = config.runs or config.rate * config.limit_s / len(turns)
    times_s = arrivals(config.rate, max(1, math.ceil(wanted / config.launches)), config.seed + launch)
    for subject, query in zip(turns, queries, strict=True):
        run = serve(query, times_s)
        stretches[subject.name].append(run)
        subject.launches.append([run.latencies_ms])


def _search(subjects: Sequence[Subject], config: BenchConfig, watch: Watch, progress: Progress) -> None:
    """Find each model's highest rate; the models cannot take turns here, since each has a rate of its own."""
    assert config.latency_ms is not None
    percent, bound_ms = config.latency_percentile, config.latency_ms
    for i, subject in enumerate(subjects):

        def tell(done: int, total: int, before: int = i) -> None:
            progress(before * total + done, len(subjects) * total)

        with subject.open(config) as session:
            query = _ready(subject, session, config, first=True)
            with watch:
                rate, run = highest_rate(query, percent, bound_ms, config.limit_s / len(subjects), config.seed, tell)
        parts = np.array_split(np.asarray(run.latencies_ms), config.launches)
        subject.launches = [[part.tolist()] for part in parts]
        subject.served = served_of([run], rate, percent, bound_ms, searched=True)
