"""Classification of many files by a server, as a stream in the order given."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from qdeploy.core.errors import ImageError, InputError
from qdeploy.runtime.classifier import Prediction
from qdeploy.runtime.inputs import STDIN
from qdeploy.runtime.predict import Answer
from qdeploy.serve.client import Client, ServerError

WORKERS = 4
"""Requests in flight: enough to keep a server of a few cores busy."""
BUSY_TRIES = 30


def predict_remote(client: Client, images: Iterable[str], workers: int | None = None) -> Iterator[Answer]:
    """Let a server classify images; a bad image gives an answer with its error and stops nothing.

    Args:
        client: The connection.
        images: Paths, or ``-`` for standard input.
        workers: Requests in flight; by default ``WORKERS``.

    Raises:
        InputError: If ``workers`` is out of range.
        ServerError: If the server does not answer, or refuses anything else than an image.
    """
    workers = WORKERS if workers is None else workers
    if not 1 <= workers <= 256:
        raise InputError("`workers` must be between 1 and 256", found=workers)
    return _stream(client, iter(images), workers)


def _stream(client: Client, images: Iterator[str], workers: int) -> Iterator[Answer]:
    waiting: deque[Future[Answer]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for image in islice(images, 2 * workers):
            waiting.append(pool.submit(_answer, client, image))
        while waiting:
            yield waiting.popleft().result()
            for image in islice(images, 1):
                waiting.append(pool.submit(_answer, client, image))
    finally:
        pool.shutdown(cancel_futures=True)


def _answer(client: Client, image: str) -> Answer:
    try:
        prediction, times = _classified(client, sys.stdin.buffer.read() if image == STDIN else Path(image))
        return Answer(image=image, prediction=prediction, error=None, reason=None, latency_ms=times)
    except ImageError as error:
        return Answer(image=image, prediction=None, error=str(error), reason=error.reason, latency_ms={})


def _classified(client: Client, image: Path | bytes) -> tuple[Prediction, dict[str, float]]:
    """Ask the server, and again a little later while it is busy."""
    for _ in range(BUSY_TRIES):
        try:
            return client.classify(image)
        except ServerError as error:
            if error.status != 503:
                raise
            time.sleep(0.2)
    return client.classify(image)
