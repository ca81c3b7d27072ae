"""The timed loop: queries of several models in alternating blocks, so that a noisy neighbour hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.progress import Progress
from qdeploy.runtime.session import Session

BLOCK = 10
"""Consecutive queries of one model before the next one's turn."""
LEAST_ROUNDS = 7
"""Fewest rounds of a loop, even if the time limit is reached before."""
WARMUP = 20

Query = Callable[[int], Callable[[], object]]
"""Prepares a numbered query, untimed, and returns the call that is timed."""
Rounds = list[list[float]]
"""One model's blocks of latencies in milliseconds."""


def queries_of(session: Session, images_NSSC: NDArray[np.uint8], samples: int, batch: int) -> Query:
    """Return the queries of a model: ``samples`` images, rotating over those given, in calls of ``batch``."""

    def prepare(number: int) -> Callable[[], object]:
        whole = images_NSSC[(number * samples + np.arange(samples)) % len(images_NSSC)]
        if batch >= samples:
            return lambda: session.infer(whole)
        parts = [whole[i : i + batch] for i in range(0, samples, batch)]

        def run() -> None:
            for part in parts:
                session.infer(part)

        return run

    return prepare


def warm_up(query: Query, seconds: float) -> None:
    """Run untimed queries, at least 20 and for at least so long."""
    end = time.perf_counter() + seconds
    number = 0
    while number < WARMUP or time.perf_counter() < end:
        query(number)()
        number += 1
        if number >= LEAST_ROUNDS and time.perf_counter() > end + 1.0:  # of queries that take long
            return


def time_queries(
    queries: Sequence[Query],
    runs: int | None,
    seconds: float,
    progress: Progress | None = None,
    block: int = BLOCK,
    least: int = LEAST_ROUNDS,
) -> list[Rounds]:
    """Time models' queries in alternating blocks; each round begins with the next model, so that none is always first.

    Args:
        queries: The queries of each model.
        runs: Timed queries of each, rounded up to whole rounds; None for as many as fit into the time.
        seconds: No new round starts after so much time.
        progress: Called with the hundredths done, and 100.
        block: Consecutive queries of one model; less if ``runs`` would give fewer than 7 rounds.
        least: Rounds that are done even if time is over.

    Returns:
        For each model, its rounds.
    """
    if runs is not None:
        block = max(1, min(block, runs // LEAST_ROUNDS))
    total = None if runs is None else -(-runs // block)
    rounds: list[Rounds] = [[] for _ in queries]
    turns = list(zip(rounds, queries, strict=True))
    begin, r = time.perf_counter(), 0
    while r != total:
        first = r % len(queries)
        for mine, query in turns[first:] + turns[:first]:
            mine.append([time_ms(query(r * block + i)) for i in range(block)])
        r += 1
        passed = (time.perf_counter() - begin) / seconds
        if progress:
            progress(int(100 * min(1.0, max(passed, r / total if total else 0.0))), 100)
        if r >= least and passed >= 1.0:
            break
    return rounds


def time_rounds(
    sessions: Sequence[Session],
    inputs: Sequence[NDArray[np.uint8]],
    runs: int | None,
    seconds: float,
    progress: Progress | None = None,
    batch_size: int = 1,
) -> list[Rounds]:
    """Time opened sessions in alternating blocks, after 20 calls of each to warm up.

    Args:
        sessions: The opened models.
        inputs: For each, images ``[N, S, S, 3]`` that the batches rotate over.
        runs: Timed calls of each; None for as many as fit into the time.
        seconds: No new round starts after so much time, if there are at least 7.
        progress: Called with the hundredths done, and 100.
        batch_size: Images of one call.
    """
    queries = [queries_of(s, i, batch_size, batch_size) for s, i in zip(sessions, inputs, strict=True)]
    for query in queries:
        warm_up(query, 0.0)
    return time_queries(queries, runs, seconds, progress)


def time_ms(work: Callable[[], object]) -> float:
    """Return the milliseconds that something takes."""
    begin = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - begin) / 1e6
