"""Counts and times of the requests: over the last minutes and since the start, in constant memory.

Times are counted in classes that are 2.2 % wide (32 for each doubling), so that a percentile is exact to about 1 %,
whole histograms can be added up, and the classes' bounds include all powers of two.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

PHASES = ("queue", "decode", "infer", "post", "total")
"""Waiting, parsing and decoding, inference, writing the answer, and all from the last byte of the request on."""
SLOT_S = 10
SLOTS = 30
"""Slots of ten seconds that make up the last five minutes."""
PER_DOUBLING = 32
AT_A_TIME = 64
"""Requests whose times are put into histograms together, which costs less than one at a time."""


class Times:
    """A histogram of milliseconds."""

    def __init__(self, counts: Mapping[int, int] | None = None, total_ms: float = 0.0) -> None:
        self.counts = Counter(counts or {})
        self.total_ms = total_ms

    def add(self, times_ms: Sequence[float]) -> None:
        """Count times."""
        log2, floor = math.log2, math.floor
        self.counts.update([floor(log2(max(ms, 1e-6)) * PER_DOUBLING) for ms in times_ms])
        self.total_ms += sum(times_ms)

    def merge(self, other: Times) -> None:
        """Add another histogram."""
        self.counts.update(other.counts)
        self.total_ms += other.total_ms

    @property
    def n(self) -> int:
        """Number of times."""
        return sum(self.counts.values())

    def percentile(self, percent: float) -> float | None:
        """Return a percentile in milliseconds by the nearest-rank rule, exact to the width of a class; None of none."""
        rank = max(1, math.ceil(percent / 100 * self.n))
        seen = 0
        for bin_ in sorted(self.counts):
            seen += self.counts[bin_]
            if seen >= rank:
                return 2.0 ** ((bin_ + 0.5) / PER_DOUBLING)
        return None

    def below(self, ms: float) -> int:
        """Return how many times were below a bound, exactly if it is a power of two."""
        edge = math.log2(ms) * PER_DOUBLING
        return sum(count for bin_, count in self.counts.items() if bin_ < edge)

    def doublings(self) -> dict[float, int]:
        """Return the number of times in classes that are a quarter of a doubling wide, by their lower bound in ms."""
        found: Counter[float] = Counter()
        for bin_, count in self.counts.items():
            found[2.0 ** (bin_ // 8 / 4)] += count
        return {edge: found[edge] for edge in sorted(found)}

    def summary(self) -> dict[str, Any]:
        """Return n, mean and percentiles in milliseconds as JSON-ready values."""
        n = self.n
        values = {f"p{p}": self.percentile(p) for p in (50, 90, 99)}
        return {"n": n, **{k: None if v is None else round(v, 4) for k, v in values.items()}, "mean": self._mean(n)}

    def _mean(self, n: int) -> float | None:
        return round(self.total_ms / n, 4) if n else None


@dataclass
class Slot:
    """What happened in one stretch of time."""

    begin: float
    """Seconds of the monotonic clock."""
    statuses: Counter[int] = field(default_factory=Counter)
    """Answers by HTTP status; sources that are not HTTP count as 200, 400 and 503."""
    images: int = 0
    """Images classified."""
    runs: int = 0
    """Inferences."""
    cpu_s: float = 0.0
    """CPU seconds of the process."""
    times: dict[str, Times] = field(default_factory=lambda: {p: Times() for p in PHASES})

    def merge(self, other: Slot) -> None:
        """Add another slot; the earlier beginning counts."""
        self.begin = min(self.begin, other.begin)
        self.statuses.update(other.statuses)
        self.images += other.images
        self.runs += other.runs
        self.cpu_s += other.cpu_s
        for phase, times in self.times.items():
            times.merge(other.times[phase])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, from which ``from_dict`` rebuilds it."""
        return {
            "begin": self.begin,
            "statuses": {str(k): v for k, v in self.statuses.items()},
            "images": self.images,
            "runs": self.runs,
            "cpu_s": self.cpu_s,
            "times": {p: {"counts": list(t.counts.items()), "total_ms": t.total_ms} for p, t in self.times.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Slot:
        """Rebuild from ``to_dict``."""
        return cls(
            begin=values["begin"],
            statuses=Counter({int(k): v for k, v in values["statuses"].items()}),
            images=values["images"],
            runs=values["runs"],
            cpu_s=values["cpu_s"],
            times={p: Times(dict(map(tuple, t["counts"])), t["total_ms"]) for p, t in values["times"].items()},
        )


class Stats:
    """All counts of one process. Safe to use from several threads."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._lock = Lock()
        self._cpu_s = time.process_time()
        self._uncounted: list[tuple[float, ...]] = []
        self._ended = Slot(self.started)
        self._slots: deque[Slot] = deque([Slot(self.started)])

    def begin(self) -> None:
        """Count CPU time from here on: what was used so far opened the models."""
        with self._lock:
            self._cpu_s = time.process_time()

    def record(self, status: int, times_ms: tuple[float, ...] | None = None, images: int = 0, runs: int = 0) -> None:
        """Count one answer.

        Args:
            status: Its HTTP status.
            times_ms: The milliseconds of each of ``PHASES``, of a request that was classified.
            images: Images classified.
            runs: Inferences that this request began; of a batch, only one request counts it.
        """
        with self._lock:
            slot = self._slots[-1]
            if time.monotonic() - slot.begin >= SLOT_S:
                slot = self._next_slot()
            slot.statuses[status] += 1
            if times_ms is not None:
                slot.images += images
                slot.runs += runs
                self._uncounted.append(times_ms)
                if len(self._uncounted) == AT_A_TIME:
                    self._count()

    def recent(self) -> Slot:
        """Return the sum of the last minutes."""
        return self._sum(lambda: list(self._slots))

    def since_start(self) -> Slot:
        """Return the sum of everything."""
        return self._sum(lambda: [self._ended, *self._slots])

    def _sum(self, slots: Callable[[], list[Slot]]) -> Slot:
        with self._lock:
            self._next_slot()
            return merged(slots())

    def _count(self) -> None:
        """Put the times that wait into the slot's histograms."""
        for times, column in zip(self._slots[-1].times.values(), zip(*self._uncounted, strict=True), strict=False):
            times.add(column)
        self._uncounted.clear()

    def _next_slot(self) -> Slot:
        """Close the slot, if it is not empty, and begin the next."""
        self._count()
        now, cpu_s = time.monotonic(), time.process_time()
        self._slots[-1].cpu_s += cpu_s - self._cpu_s
        self._cpu_s = cpu_s
        if now - self._slots[-1].begin >= SLOT_S:
            self._slots.append(Slot(now))
        while len(self._slots) > 1 and now - self._slots[0].begin > SLOT_S * SLOTS:
            self._ended.merge(self._slots.popleft())
        return self._slots[-1]


def merged(slots: Iterable[Slot]) -> Slot:
    """Return the sum of slots."""
    whole = Slot(time.monotonic())
    for slot in slots:
        whole.merge(slot)
    return whole
