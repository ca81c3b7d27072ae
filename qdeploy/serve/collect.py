"""Images that are worth a person's look, kept while a server answers: unknown, uncertain, and some by chance.

``FOLDER/<sha256>.<format>`` is an image as it was sent, ``FOLDER/<sha256>.json`` beside it what was answered; the
second is written first, so that an image never lacks it. The request's path only decides; a thread of its own hashes
and writes. Nothing that is in the folder is removed or changed.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from math import isfinite
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, NamedTuple

from qdeploy.core.files import sha256_of, write_bytes, write_json
from qdeploy.core.image_formats import HEAD_BYTES, format_of
from qdeploy.core.whole import open_alone
from qdeploy.runtime.classifier import Prediction
from qdeploy.serve.collect_config import CollectConfig
from qdeploy.serve.models import Event, Opened, Served

KEPT = re.compile(r"(?P<sha256>[0-9a-f]{64})\.[a-z]+")
"""Name of an image in the folder, and of what is known of it."""
LOCK = ".lock"
"""Held while something is written. It stays: a file that came and went would change the folder's time."""
WAITING, WAITING_BYTES = 64, 64 * 2**20
"""Images, and their bytes, that may wait to be written; what comes meanwhile is left out."""
TURN_S = 0.02
AGAIN_S = 30.0
"""So long nothing is tried after a write has failed."""
TOP = 5
"""Labels of an answer that are kept with their probabilities."""


class Offer(NamedTuple):
    """An image that is to be kept."""

    file: bytes
    why: str
    """unknown, uncertain or random."""
    prediction: Prediction
    opened: Opened
    name: str
    version: int
    time: float


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Keep other processes out while the block runs."""
    while (handle := open_alone(file)) is None:
        time.sleep(TURN_S)
    try:
        yield
    finally:
        os.close(handle)


class Collector:
    """Keeps images of one server. Safe to use from several threads, and beside other processes in one folder."""

    def __init__(self, config: CollectConfig, event: Event) -> None:
        self.config = config
        self._event = event
        self._queue: SimpleQueue[Offer | None] = SimpleQueue()
        self._lock = Lock()
        self._waiting_bytes = 0
        self._random = random.Random()
        self._known: set[str] = set()
        self._bytes = 0
        self._looked: int | None = None
        self._full = False
        self._problem: str | None = None
        self._again = 0.0
        self.counts: Counter[str] = Counter()
        """Images by what became of them: kept, by reason; repeated; left-out."""
        self._thread = Thread(target=self._run, name="collect", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what waits, and end."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(timeout_s)

    def offer(self, served: Served, opened: Opened, file: bytes, logits: Sequence[float], row: Sequence[float]) -> None:
        """Look at an answer, and hand its image on if it is to be kept; takes microseconds.

        Args:
            served: The model that answered.
            opened: The same, as it was then.
            file: The image as it was sent.
            logits: Its logits.
            row: Its probabilities.
        """
        if self._full:
            return
        score = opened.cut.score(logits, row) if opened.cut else None
        if not isfinite(sum(row) + (score or 0.0)):
            return
        unknown = opened.cut is not None and score is not None and score < opened.cut.threshold
        if unknown:
            why = "unknown"
        elif max(row) < self.config.below:
            why = "uncertain"
        elif self._random.random() < self.config.share:
            why = "random"
        else:
            return
        with self._lock:
            late = self._queue.qsize() >= WAITING or self._waiting_bytes + len(file) > WAITING_BYTES
            if late or time.monotonic() < self._again:
                self.counts["left-out"] += 1
                return
            self._waiting_bytes += len(file)
        prediction = Prediction(opened.card.labels, tuple(row), score, unknown)
        self._queue.put(Offer(file, why, prediction, opened, served.name, served.version, time.time()))

    def to_dict(self) -> dict[str, Any]:
        """Return what the report says: what became of the images, and what is in the folder."""
        return {
            "folder": str(self.config.folder),
            "images": len(self._known),
            "bytes": self._bytes,
            "most_images": self.config.most_images,
            "most_bytes": self.config.most_bytes,
            "full": self._full,
            "problem": self._problem,
            **{name: self.counts[name] for name in ("unknown", "uncertain", "random", "repeated", "left-out")},
        }

    def _run(self) -> None:
        self._tried(None)
        while (offer := self._queue.get()) is not None:
            with self._lock:
                self._waiting_bytes -= len(offer.file)
            self._tried(offer)

    def _tried(self, offer: Offer | None) -> None:
        """Keep an image; what the system refuses is told once, and tried again later."""
        try:
            self._keep(offer)
        except Exception as error:  # a full disk, most often; the server goes on whatever it is
            why = (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
            self._again = time.monotonic() + AGAIN_S
            self.counts["left-out"] += offer is not None
            if why != self._problem:
                self._event("collect-failed", level="error", folder=str(self.config.folder), why=why)
            self._problem = why
        else:
            self._problem = None

    def _keep(self, offer: Offer | None) -> None:
        """Write an image and what is known of it, unless it is there or there is no more room for it."""
        folder = self.config.folder
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / LOCK):
            self._look()
            if offer is None:
                return
            digest = sha256_of(offer.file)
            if digest in self._known:
                self.counts["repeated"] += 1
                return
            image = folder / f"{digest}.{(format_of(offer.file[:HEAD_BYTES]) or 'image').lower()}"
            told = self._told(offer, digest, image.name)
            size = len(offer.file) + len(json.dumps(told, indent=2)) + 1
            if len(self._known) >= self.config.most_images or self._bytes + size > self.config.most_bytes:
                self._say_full()
                self.counts["left-out"] += 1
                return
            beside = folder / f"{digest}.json"
            write_json(beside, told)
            try:
                write_bytes(image, offer.file)
            except OSError:
                beside.unlink()
                raise
            self._known.add(digest)
            self._bytes += size
            self.counts[offer.why] += 1
            self._looked = folder.stat().st_mtime_ns
            if len(self._known) >= self.config.most_images:
                self._say_full()

    def _look(self) -> None:
        """Count what is in the folder, if anybody else has changed it."""
        now = self.config.folder.stat().st_mtime_ns
        if now == self._looked:
            return
        sizes: dict[str, int] = {}
        known = set()
        with os.scandir(self.config.folder) as entries:
            for entry in entries:
                if match := KEPT.fullmatch(entry.name):
                    sizes[entry.name] = entry.stat().st_size
                    if not entry.name.endswith(".json"):
                        known.add(match["sha256"])
        self._known, self._bytes, self._looked = known, sum(sizes.values()), now
        if len(known) >= self.config.most_images or self._bytes >= self.config.most_bytes:
            self._say_full()

    def _say_full(self) -> None:
        if not self._full:
            self._full = True
            n, size = len(self._known), self._bytes
            self._event("collect-full", level="warning", folder=str(self.config.folder), images=n, bytes=size)

    def _told(self, offer: Offer, digest: str, image: str) -> dict[str, Any]:
        """Return what is known of an image, as ``qdeploy review`` reads it."""
        p, opened = offer.prediction, offer.opened
        return {
            "image": image,
            "sha256": digest,
            "time": datetime.fromtimestamp(offer.time, timezone.utc).isoformat(timespec="milliseconds"),
            "why": offer.why,
            "label": p.label,
            "would_be": p.would_be,
            "probability": round(p.probability, 6),
            "score": None if p.score is None else round(p.score, 4),
            "threshold": opened.cut.threshold if opened.cut else None,
            "predictions": [
                {"label": r.label, "index": r.index, "probability": round(r.probability, 6)} for r in p.top(TOP)
            ],
            "model": {
                "name": offer.name,
                "version": str(offer.version),
                "file": str(opened.path),
                "sha256": opened.sha256,
            },
            "labels": list(opened.card.labels),
        }
