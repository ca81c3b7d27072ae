"""Classification of many files, as a stream in the order given."""

from __future__ import annotations

import glob
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import ImageError, ImageReason, InputError
from qdeploy.core.image import MAX_FILE_BYTES, SUFFIXES
from qdeploy.runtime.classifier import Classifier, Prediction

STDIN = "-"


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

    def to_dict(self, top: int) -> dict[str, Any]:
        """Give the JSON line of ``qdeploy predict``."""
        if self.prediction is None:
            return {"image": self.image, "error": self.error, "reason": self.reason}
        best = [
            {"label": r.label, "index": r.index, "probability": round(r.probability, 6)}
            for r in self.prediction.top(top)
        ]
        times = {k: round(v, 4) for k, v in self.latency_ms.items()}
        return {"image": self.image, "predictions": best, "latency_ms": times}


def expand(words: Iterable[str]) -> Iterator[str]:
    """Turn files, folders, globs and ``-`` into single images, folders and globs in sorted order.

    Raises:
        InputError: If a folder or a glob holds no image.
    """
    for word in words:
        path = Path(word)
        if word == STDIN or path.is_file():
            yield word
        elif path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not found:
                raise InputError(f"the folder {word} holds no image ({', '.join(sorted(SUFFIXES))})")
            yield from map(str, found)
        elif glob.has_magic(word):
            matches = sorted(glob.glob(word, recursive=True))
            if not matches:
                raise InputError(f"no file matches '{word}'")
            yield from matches
        else:
            yield word


def predict_files(classifier: Classifier, images: Iterable[str], batch_size: int = 1) -> Iterator[Answer]:
    """Classify images one batch at a time; a bad image gives an answer with its error and stops nothing.

    Args:
        classifier: The opened model.
        images: Paths, or ``-`` for standard input.
        batch_size: Images of one inference.
    """
    if batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, found {batch_size}")
    waiting: list[_Ready] = []
    for image in images:
        waiting.append(_prepare(classifier, image))
        if len(waiting) == batch_size:
            yield from _answers(classifier, waiting)
            waiting = []
    if waiting:
        yield from _answers(classifier, waiting)


@dataclass(frozen=True)
class _Ready:
    image: str
    pixels: NDArray[np.uint8] | None
    error: ImageError | None
    decode_ms: float = 0.0
    preprocess_ms: float = 0.0


def _prepare(classifier: Classifier, image: str) -> _Ready:
    rules = classifier.card.preprocessing
    begin = time.perf_counter_ns()
    try:
        decoded = rules.open(_stdin() if image == STDIN else Path(image))
    except ImageError as error:
        return _Ready(image, None, error)
    middle = time.perf_counter_ns()
    pixels = rules.resize(decoded)
    return _Ready(image, pixels, None, (middle - begin) / 1e6, (time.perf_counter_ns() - middle) / 1e6)


def _stdin() -> bytes:
    if sys.stdin is None:
        raise ImageError("standard input is closed", "unreadable")
    data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"standard input exceeds {MAX_FILE_BYTES // 2**20} MiB", "too-large")
    return data


def _answers(classifier: Classifier, ready: list[_Ready]) -> Iterator[Answer]:
    good = [r.pixels for r in ready if r.pixels is not None]
    begin = time.perf_counter_ns()
    predictions = iter(classifier.classify(np.stack(good)) if good else [])
    infer_ms = (time.perf_counter_ns() - begin) / 1e6 / max(1, len(good))
    for r in ready:
        times = {"decode": r.decode_ms, "preprocess": r.preprocess_ms, "infer": infer_ms}
        yield Answer(
            image=r.image,
            prediction=next(predictions) if r.pixels is not None else None,
            error=str(r.error) if r.error else None,
            reason=r.error.reason if r.error else None,
            latency_ms=times,
        )
