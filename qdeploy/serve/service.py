"""Models, queue and counts behind every way in: HTTP, a watched folder, a camera."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from threading import Event as Flag
from threading import Thread
from typing import Any

from qdeploy.core.errors import ImageError
from qdeploy.core.image import load_decoders
from qdeploy.runtime.classifier import Prediction, predictions
from qdeploy.runtime.session import Rows
from qdeploy.serve.collect import Collector
from qdeploy.serve.config import ServeConfig
from qdeploy.serve.lanes import Lanes, Task
from qdeploy.serve.memory import Memory
from qdeploy.serve.models import Event, Models
from qdeploy.serve.refusal import RefusedError, late, refused_image
from qdeploy.serve.stats import PHASES, Stats


class ImageTask(Task[Prediction]):
    """One encoded image, for sources that are not HTTP."""

    data: bytes

    def prepare(self) -> bytes:
        """Decode the image."""
        self.count = 1
        try:
            return self.opened.card.preprocessing.to_bytes(self.data)
        except ImageError as error:
            raise refused_image(error) from error

    def finish(self, logits: Rows, probabilities: Rows) -> Prediction:
        """Return the prediction."""
        if self.look:
            self.look(self.data, logits[0], probabilities[0])
        (answer,) = predictions(
            self.opened.card.labels, logits, probabilities, self.opened.cut, self.opened.card.temperature
        )
        if isinstance(answer, ImageError):
            raise refused_image(answer)
        return answer


class Service:
    """Everything that answers, without a network."""

    def __init__(self, given: Sequence[str], config: ServeConfig, event: Event) -> None:
        self.config = config
        self.event = event
        self.memory = Memory()
        self.stats = Stats()
        self.models = Models(given, config, event)
        self.leaving = False
        """Whether the server was told to stop, and still takes requests."""
        self.draining = False
        """Whether new requests are refused."""
        self.others: Callable[[], list[dict[str, Any]]] = list
        """Snapshots of the other workers; see ``qdeploy.serve.report``."""
        self.collector = Collector(config.collect, event) if config.collect else None
        self._lanes: Lanes | None = None
        self._stop = Flag()
        self._look_after = Thread(target=self._look, name="look-after", daemon=True)

    def start(self) -> None:
        """Open, check and warm all models and begin to answer.

        Raises:
            QdeployError: If a model cannot be opened.
        """
        self.memory.runtime()
        load_decoders()
        self.models.open_all()
        c = self.config
        self._lanes = Lanes(self.models.lanes, c.queue, c.deadline_s)
        self.memory.ready()
        if self.collector:
            self.collector.start()
        self.stats.begin()
        self._look_after.start()

    @property
    def ready(self) -> bool:
        """Whether all models are opened and warm, and the server is not stopping."""
        return self._lanes is not None and not self.leaving and all(s.opened for s in self.models.all)

    @property
    def waiting(self) -> int:
        """Number of requests that wait."""
        return 0 if self._lanes is None else self._lanes.waiting

    @property
    def lanes(self) -> Lanes:
        """The queue.

        Raises:
            RefusedError: 503 while the models are being opened.
        """
        if self._lanes is None:
            raise RefusedError(503, "not-ready", "the models are being opened", ((b"retry-after", b"1"),))
        return self._lanes

    def look(self, task: Task[Any]) -> None:
        """Let a task's images be seen by what collects some of them, if anything does."""
        if self.collector:
            task.look = partial(self.collector.offer, task.served, task.opened)

    def count(self, task: Task[Any]) -> tuple[float, ...]:
        """Count a task that was answered and return the milliseconds of its phases."""
        times = task.times_ms()
        self.stats.record(200, times, task.count, task.runs)
        task.served.counters.succeed(times, task.count, task.runs)
        return times

    def classify(self, data: bytes, model: str | None = None) -> tuple[Prediction, dict[str, float]]:
        """Classify one encoded image through the queue and wait for the answer.

        Args:
            data: An image file's bytes.
            model: Name of the model; by default the first.

        Returns:
            The prediction and the milliseconds of each phase.

        Raises:
            RefusedError: If it is no image, the queue is full, or the answer is late.
        """
        done = Flag()
        task = ImageTask(*self.models.get(model))
        task.data = data
        self.look(task)
        task.done = lambda _: done.set()
        try:
            self.lanes.submit(task)
            if not done.wait(self.config.deadline_s):
                raise late(self.config.deadline_s)
            if task.error is not None:
                raise task.error
        except RefusedError as refusal:
            self.stats.record(refusal.status)
            task.served.counters.fail(task.arrived)
            raise
        times = self.count(task)
        assert task.answer is not None
        return task.answer, dict(zip(PHASES, times, strict=True))

    def stop(self) -> None:
        """Answer what is queued and let the models go."""
        self.draining = True
        self._stop.set()
        if self._look_after.is_alive():
            self._look_after.join(5)
        if self._lanes is not None:
            self._lanes.close()
        if self.collector:
            self.collector.close()
        self.models.close()

    def _look(self) -> None:
        """Look after the files and the memory, until the service stops."""
        every = self.config.poll_s or 1.0
        while not self._stop.wait(every):
            self.memory.look()
            guarded(self.models.tell_drift, self.event)
            if self.config.poll_s:
                guarded(self.models.look, self.event)


def guarded(work: Callable[[], None], event: Event) -> None:
    """Do something in a thread that must not end; what it raises is told."""
    try:
        work()
    except Exception as error:
        event("defect", level="error", why=f"{type(error).__name__}: {error}")
