"""What the process's memory is made of, and whether it grows."""

from __future__ import annotations

import gc
import time
from collections import deque
from typing import Any

from qdeploy.core.machine import peak_memory_bytes, resident_bytes

EVERY_S = 10.0
POINTS = 720
"""Readings that are kept: two hours; of an older process every second one is dropped, and so on."""
SETTLED_S = 60.0
"""Growth is counted from here on: until then pools fill up."""


def settle() -> None:
    """Let later collections of garbage pass over all that is there now.

    A full one of everything that starting leaves would stop all requests for more than ten milliseconds, again and
    again. It is for processes that do nothing but serve: cycles among what is there now are kept for good.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def settle_again() -> None:
    """Do so after a swap, where it was done before."""
    if gc.get_freeze_count():
        settle()


class Memory:
    """Readings of the resident size."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.base_bytes = resident_bytes()
        """Python and the server, before the inference runtime is loaded."""
        self.runtime_bytes = self.ready_bytes = self.base_bytes
        self.points: deque[tuple[float, int]] = deque([(0.0, self.base_bytes)])
        """Seconds since the start and resident bytes."""
        self._every = EVERY_S
        self._due = 0.0

    def runtime(self) -> None:
        """Load the inference runtime, so that its share is known, and read."""
        from qdeploy.runtime.session import engine_class

        engine_class("ort")
        self.runtime_bytes = resident_bytes()

    def ready(self) -> None:
        """Read when all models are opened and warm."""
        self.ready_bytes = resident_bytes()
        self.look()

    def look(self) -> None:
        """Read if it is time."""
        now = time.monotonic() - self.started
        if now < self._due:
            return
        self._due = now + self._every
        self.points.append((now, resident_bytes()))
        if len(self.points) > POINTS:
            self.points = deque(list(self.points)[::2])
            self._every *= 2

    def growth_bytes_per_hour(self) -> float | None:
        """Return the slope of the resident size after the first minute; None before there are ten readings of it."""
        points = [p for p in self.points if p[0] >= SETTLED_S]
        if len(points) < 10:
            return None
        mean_t = sum(t for t, _ in points) / len(points)
        mean_b = sum(b for _, b in points) / len(points)
        spread = sum((t - mean_t) ** 2 for t, _ in points)
        return 3600 * sum((t - mean_t) * (b - mean_b) for t, b in points) / spread

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        now, growth = resident_bytes(), self.growth_bytes_per_hour()
        return {
            "resident_bytes": now,
            "peak_bytes": peak_memory_bytes(),
            "share_bytes": {
                "python_and_server": self.base_bytes,
                "inference_runtime": max(0, self.runtime_bytes - self.base_bytes),
                "models": max(0, self.ready_bytes - self.runtime_bytes),
                "buffers": max(0, now - self.ready_bytes),
            },
            "growth_bytes_per_hour": None if growth is None else round(growth),
            "resident_over_time": [[round(t, 1), b] for t, b in self.points],
        }
