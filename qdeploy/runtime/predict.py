"""Classification of many files, as a stream in the order given."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdeploy.core.errors import ImageError, ImageReason, InputError
from qdeploy.core.image_formats import MAX_FILE_BYTES
from qdeploy.core.machine import usable_cores
from qdeploy.runtime.classifier import Classifier, Prediction
from qdeploy.runtime.inputs import STDIN, Arriving

if TYPE_CHECKING:
    from concurrent.futures import Future

VOLUME_BATCH = 16
"""Images of one inference where there are many: one by one, a sixth of the time goes into handing over, and more
than 16 gain nothing (benchmarks/volume.py)."""
LOOK_AHEAD = 2
"""Batches that wait for each worker, so that none idles while answers are written."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of one image: a prediction, or the reason why there is none."""

    image: str
    prediction: Prediction | None
    error: str | None
    reason: ImageReason | None
    """The error's code."""
    latency_ms: dict[str, float]
    """decode, preprocess and infer, in milliseconds; infer is the batch's time divided by its images."""
    frames: int = 1
    """Frames or pages of the file, of which the first was classified; 2 of a GIF that moves."""

    def to_dict(self, top: int) -> dict[str, Any]:
        """Return the JSON line of ``qdeploy predict``."""
        if self.prediction is None:
            return {"image": self.image, "error": self.error, "reason": self.reason}
        best = [
            {"label": r.label, "index": r.index, "probability": round(r.probability, 6)}
            for r in self.prediction.top(top)
        ]
        times = {k: round(v, 4) for k, v in self.latency_ms.items()}
        more = {"frames": self.frames} if self.frames > 1 else {}
        return {"image": self.image, **self.prediction.told(), "predictions": best, "latency_ms": times, **more}


def predict_files(
    classifier: Classifier, images: Iterable[str], batch_size: int | None = None, workers: int | None = None
) -> Iterator[Answer]:
    """Classify images as a stream in their order; a bad image gives an answer with its error and stops nothing.

    Each worker decodes a batch of images and classifies it; images are asked for as they are needed. A classifier
    opened with ``threads=1`` is the fastest for many images.

    Args:
        classifier: The opened model.
        images: Paths, or ``-`` for standard input. Those of ``Arriving`` are answered as they come: a batch is what is
            there, up to ``batch_size``.
        batch_size: Images of one inference; by default ``VOLUME_BATCH``.
        workers: Threads; by default as many as usable cores. Where one batch holds all images none is started.

    Raises:
        InputError: If ``batch_size`` or ``workers`` is out of range.
    """
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value is not None and not 1 <= value <= 1024:
            raise InputError(f"`{name}` must be between 1 and 1024", found=value)
    return _stream(classifier, iter(images), batch_size or VOLUME_BATCH, workers or usable_cores())


def _stream(classifier: Classifier, images: Iterator[str], batch_size: int, workers: int) -> Iterator[Answer]:
    if isinstance(images, Arriving):
        yield from _pooled(classifier, images.take, images.idle, batch_size, workers)
        return
    first, second = list(islice(images, batch_size)), list(islice(images, batch_size))
    if not second:
        yield from answer(classifier, first)
        return
    rest = chain([first, second], iter(lambda: list(islice(images, batch_size)), []), [[]])
    yield from _pooled(classifier, lambda _: next(rest), lambda: False, batch_size, workers)


def _pooled(
    classifier: Classifier,
    take: Callable[[int], list[str]],
    idle: Callable[[], bool],
    batch_size: int,
    workers: int,
) -> Iterator[Answer]:
    """Answer batches in threads, in their order.

    Args:
        classifier: The opened model.
        take: Gives the next batch of so many, or fewer; an empty one at the end.
        idle: Whether the next batch is not there yet, so that answers are better waited for.
        batch_size: Images of one inference.
        workers: Threads.
    """
    from concurrent.futures import ThreadPoolExecutor  # costs milliseconds, which one image does not have

    waiting: deque[Future[list[Answer]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        while True:
            if waiting and (len(waiting) > workers * LOOK_AHEAD or idle()):
                yield from waiting.popleft().result()
            elif batch := take(batch_size):
                waiting.append(pool.submit(answer, classifier, batch))
            else:
                break
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def answer(classifier: Classifier, images: list[str]) -> list[Answer]:
    """Decode some images and classify them with one inference."""
    ready = [_prepare(classifier, image) for image in images]
    good = [r.pixels for r in ready if r.pixels is not None]
    begin = time.perf_counter_ns()
    answers = iter(classifier.answers(b"".join(good), len(good)))
    infer_ms = (time.perf_counter_ns() - begin) / 1e6 / max(1, len(good))
    found = [(r, next(answers) if r.error is None else r.error) for r in ready]
    return [
        Answer(
            image=r.image,
            prediction=None if isinstance(a, ImageError) else a,
            error=str(a) if isinstance(a, ImageError) else None,
            reason=a.reason if isinstance(a, ImageError) else None,
            latency_ms={"decode": r.decode_ms, "preprocess": r.preprocess_ms, "infer": infer_ms},
            frames=r.frames,
        )
        for r, a in found
    ]


@dataclass(frozen=True)
class _Ready:
    image: str
    pixels: bytes | None
    error: ImageError | None
    decode_ms: float = 0.0
    preprocess_ms: float = 0.0
    frames: int = 1


def _prepare(classifier: Classifier, image: str) -> _Ready:
    rules = classifier.card.preprocessing
    begin = time.perf_counter_ns()
    try:
        decoded = rules.open(_stdin() if image == STDIN else _listable(Path(image)))
    except ImageError as error:
        return _Ready(image, None, error)
    middle = time.perf_counter_ns()
    pixels = rules.fit(decoded).tobytes()
    frames = decoded.info.get("frames", 1)
    return _Ready(image, pixels, None, (middle - begin) / 1e6, (time.perf_counter_ns() - middle) / 1e6, frames)


def _listable(path: Path) -> Path:
    """Return the path, or raise why a folder cannot be listed; the decoder would only say that it is no image."""
    if os.path.isdir(path):
        try:
            os.scandir(path).close()
        except OSError as error:
            raise ImageError(f"cannot be read: {error.strerror or error}", "unreadable") from error
    return path


def _stdin() -> bytes:
    if sys.stdin is None:
        raise ImageError("standard input is closed", "unreadable")
    data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"standard input exceeds {MAX_FILE_BYTES // 2**20} MiB", "too-large")
    return data
