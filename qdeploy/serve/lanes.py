"""The queue of requests and the threads that work on them, one for each inference that may run at a time."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice, takewhile
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

from qdeploy.core.errors import EngineError, QdeployError
from qdeploy.runtime.session import Rows
from qdeploy.serve.models import Opened, Served
from qdeploy.serve.refusal import RefusedError, busy, draining, late

A = TypeVar("A")
Look = Callable[[bytes, Sequence[float], Sequence[float]], None]

BURST_NS = 4_000_000
"""Longest time after which the loop looks for events, while cheap tasks wait; none is interrupted."""


class Task(ABC, Generic[A]):
    """One request: what is done with it in a lane, before and after the inference.

    Times are nanoseconds of ``time.perf_counter_ns``.
    """

    def __init__(self, served: Served, opened: Opened) -> None:
        self.served = served
        self.opened = opened
        self.count = 0
        """Images of this request."""
        self.runs = 1
        """Inferences that are counted with it: of a batch of requests, one counts it."""
        self.arrived = time.perf_counter_ns()
        self.begun = self.prepared = self.inferred = self.ended = 0
        self.answer: A | None = None
        self.error: BaseException | None = None
        self.done: Callable[[Task[A]], None] = lambda task: None
        """Called in the lane when the answer or the error is there."""
        self.look: Look | None = None
        """Called with each image that is answered, as it was sent, its logits and its probabilities."""

    @abstractmethod
    def prepare(self) -> bytes:
        """Set ``count`` and return the pixels of so many images, uint8 RGB, one after the other."""

    @abstractmethod
    def finish(self, logits: Rows, probabilities: Rows) -> A:
        """Return the answer."""

    def times_ms(self) -> tuple[float, ...]:
        """Return the milliseconds of each phase up to now; see ``qdeploy.serve.stats``."""
        return (
            (self.begun - self.arrived) / 1e6,
            (self.prepared - self.begun) / 1e6,
            (self.inferred - self.prepared) / 1e6,
            (self.ended - self.inferred) / 1e6,
            (time.perf_counter_ns() - self.arrived) / 1e6,
        )


class Lanes:
    """A bounded queue and its threads."""

    def __init__(self, count: int, capacity: int, deadline_s: float) -> None:
        self.capacity = capacity
        """Requests that may wait."""
        self._deadline_s = deadline_s
        self._queue: SimpleQueue[Task[Any] | None] = SimpleQueue()
        self._closed = False
        self._cheap: deque[Task[Any]] = deque()
        self._threads = [Thread(target=self._run, name=f"lane-{i}", daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    @property
    def count(self) -> int:
        """Number of threads."""
        return len(self._threads)

    @property
    def waiting(self) -> int:
        """Number of requests that wait."""
        return self._queue.qsize() + len(self._cheap)

    @property
    def full(self) -> bool:
        """Whether no more may wait."""
        return self.waiting >= self.capacity

    def submit_cheap(self, task: Task[Any], loop: AbstractEventLoop) -> None:
        """Queue a task to be worked on in the loop's own thread, where that is all that a core has to do.

        A thread that competes for Python's lock would cost a quarter of a small model's time. Half of what waits is
        done in one go, for four milliseconds at most; then the loop looks for events. Taking turns after every task
        would cost a tenth of the throughput: inference and everything else drive each other out of the CPU's caches.

        Raises:
            RefusedError: If too many wait, or the lanes are closed.
        """
        if self._closed:
            raise draining()
        if self.full:
            raise busy(self.capacity)
        self._cheap.append(task)
        if len(self._cheap) == 1:
            loop.call_soon(self._step, loop)

    def _step(self, loop: AbstractEventLoop) -> None:
        waiting, end = len(self._cheap), time.perf_counter_ns() + BURST_NS
        left = max((waiting + 1) // 2, min(waiting, self._cheap[0].opened.max_batch))
        while left > 0 and time.perf_counter_ns() < end:
            batch = self._cheap_batch(left)
            self._work(batch)
            for _ in batch:
                self._cheap.popleft()
            left -= len(batch)
        if self._cheap:
            loop.call_soon(self._step, loop)

    def _cheap_batch(self, most: int) -> list[Task[Any]]:
        """Return the first cheap tasks, as far as one inference can answer them."""
        opened = self._cheap[0].opened
        most = min(most, opened.max_batch)
        return list(takewhile(lambda task: task.opened is opened, islice(self._cheap, most)))

    def submit(self, task: Task[Any]) -> None:
        """Queue a task.

        Raises:
            RefusedError: If too many wait, or the lanes are closed.
        """
        if self._closed:
            raise draining()
        if self.full:
            raise busy(self.capacity)
        self._queue.put(task)

    def close(self, timeout_s: float = 5.0) -> None:
        """Finish what is queued and end the threads."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        end = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _run(self) -> None:
        after: Task[Any] | None = None
        while True:
            task, after = after or self._queue.get(), None
            if task is None:
                return
            batch, after = self._batch(task)
            self._work(batch)

    def _batch(self, first: Task[Any]) -> tuple[list[Task[Any]], Task[Any] | None]:
        """Return a task with those waiting behind it that one inference can answer, and the task that ends them.

        The lanes share what waits: none takes what another could begin with.
        """
        batch = [first]
        share = 1 + self._queue.qsize() // len(self._threads)
        while len(batch) < min(first.opened.max_batch, share):
            try:
                task = self._queue.get_nowait()
            except Empty:
                break
            if task is None:
                self._queue.put(None)
                break
            if task.opened is not first.opened:
                return batch, task
            batch.append(task)
        return batch, None

    def _work(self, tasks: list[Task[Any]]) -> None:
        ready, pixels = [], []
        for task in tasks:
            task.begun = time.perf_counter_ns()
            try:
                if task.begun - task.arrived > self._deadline_s * 1e9:
                    raise late(self._deadline_s)
                pixels.append(task.prepare())
                ready.append(task)
            except BaseException as error:
                self._end(task, error)
            task.prepared = time.perf_counter_ns()
        if ready:
            self._infer(ready, pixels)

    def _infer(self, tasks: list[Task[Any]], pixels: list[bytes]) -> None:
        counts = [task.count for task in tasks]
        begin = tasks[-1].prepared
        try:
            session = tasks[0].opened.session
            logits, probabilities = session.infer_bytes(
                pixels[0] if len(pixels) == 1 else b"".join(pixels), sum(counts)
            )
        except BaseException as error:
            for task in tasks:
                self._end(task, _explained(error))
            return
        inferred = time.perf_counter_ns()
        first = 0
        for i, task in enumerate(tasks):
            task.prepared, task.inferred = begin, inferred
            task.runs = int(i == 0)
            last = first + task.count
            try:
                task.answer = task.finish(logits[first:last], probabilities[first:last])
                self._end(task)
            except BaseException as error:
                self._end(task, error)
            first = last
        if (drift := tasks[0].opened.drift) is not None:  # when the answers are there: it costs them nothing
            temperature = tasks[0].opened.card.temperature
            for logit, row in zip(logits, probabilities, strict=True):
                drift.add_row(logit, row, temperature)

    def _end(self, task: Task[Any], error: BaseException | None = None) -> None:
        task.error = error
        task.ended = time.perf_counter_ns()
        task.done(task)


def _explained(error: BaseException) -> BaseException:
    """Turn what an inference raised into what a client is told."""
    if isinstance(error, EngineError):
        return RefusedError(500, "engine", str(error))
    if isinstance(error, QdeployError):  # the session was closed between the lookup and the inference
        return RefusedError(503, "not-ready", str(error), ((b"retry-after", b"1"),))
    return error
