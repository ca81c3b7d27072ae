"""The log: one JSON document a line on standard error, never with the content of an image."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from threading import Lock
from typing import Any, TextIO

MOST_PER_SECOND = 50
"""Lines of one kind and status in a second; what is left out is counted in the next line."""


class Log:
    """Writes events. Safe to use from several threads; a full disk or a closed stream stops nothing."""

    def __init__(self, stream: TextIO | None = None, quiet: bool = False, worker: int | None = None) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._more = {} if worker is None else {"worker": worker}
        self._lock = Lock()
        self._second = 0
        self._lines: dict[Any, int] = {}

    def __call__(self, event: str, level: str = "info", **details: Any) -> None:
        """Write an event with its details."""
        if self._quiet and level == "info":
            return
        with self._lock:
            left_out = self._budget((event, details.get("status")))
            if left_out is None:
                return
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            entry = {"time": now, "level": level, "event": event, **self._more, **details}
            if left_out:
                entry["left_out"] = left_out
            with suppress(OSError, ValueError):
                self._stream.write(json.dumps(entry) + "\n")  # whole: other workers write there, too
                self._stream.flush()

    def _budget(self, kind: Any) -> int | None:
        """Return how many lines were left out in the second before; None if this one is to be left out."""
        second = int(time.monotonic())
        left_out = 0
        if second != self._second:
            left_out = sum(max(0, n - MOST_PER_SECOND) for n in self._lines.values())
            self._second, self._lines = second, {}
        self._lines[kind] = self._lines.get(kind, 0) + 1
        return left_out if self._lines[kind] <= MOST_PER_SECOND else None


class _Passing(logging.Handler):
    def __init__(self, event: Callable[..., None]) -> None:
        super().__init__(logging.WARNING)
        self._event = event

    def emit(self, record: logging.LogRecord) -> None:
        self._event("http", level=record.levelname.lower(), why=record.getMessage())


@contextmanager
def uvicorn_told(event: Callable[..., None]) -> Iterator[None]:
    """Make events of what uvicorn logs meanwhile: as lines of its own it would stand between those of our log."""
    logger, handler = logging.getLogger("uvicorn.error"), _Passing(event)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
