"""The CPU threads of a run: as many as asked for, else the fastest count, measured, and again when the speed changes.

Beside busy neighbours two threads can take many times as long as one: torch's threads wait for each other after
every operation, and the system has stopped one of them. No rule knows that in advance, so it is measured, with forward
passes that are thrown away: the weights depend on the counts that trained them and on nothing else.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from qdeploy.core.machine import usable_cores, wanted_threads
from qdeploy.training.recipes import TrainConfig

WORTH = 0.87
"""Another count must take at most so much of the time: on a quiet machine the choice is then always the same."""
REPEATS = 2
"""Forward passes that are timed with a count."""
LONG_S = 1.0
"""A pass that takes so long is not repeated and needs none before it to warm up."""
HOPELESS = 1.5
"""A count whose passes take so many times as long as the fastest count's is not timed any further."""
WARMING_S = 0.3
"""What the first pass with a count may take longer than the next."""
WINDOW = 8
"""Steps whose median is the present speed."""
CHANGED = 1.4
"""Ratio of the present speed to that after the last choice from which it is made anew."""
COLLAPSED = 3.0
"""The same ratio where the last two steps alone suffice."""
STUCK = 8.0
"""The same ratio where the last step alone suffices: the next may take a minute again."""
SHARE, URGENT_SHARE = 0.05, 0.15
"""Largest share of the time that measuring may take: out of curiosity, and when training became slower."""
LEAST_STEPS = 20
"""Steps left for which measuring again pays; before the first step it always does."""


@dataclass(frozen=True, kw_only=True)
class ThreadRange:
    """With how many threads a run may compute."""

    first: int
    """The count to begin with."""
    most: int
    """The largest count to try; equal to ``first`` where nothing is tried."""
    measured: bool
    """Whether the fastest count is looked for."""
    told: bool = False
    """Whether it is said that training collapsed with a count that was asked for."""


def thread_range(config: TrainConfig, *, device: str, processes: int, default: int, cores: int | None) -> ThreadRange:
    """Say with how many threads a run may compute.

    Args:
        config: The run; its ``threads`` is kept to.
        device: Type of the device; of a GPU the CPU's threads matter little.
        processes: Processes that train together; they have to step together, so none changes its threads alone.
        default: What torch computes with.
        cores: Largest count of a process that shares the machine; by default the cores that may be used.
    """
    if config.threads:
        told = device == "cpu" and processes == 1 and config.threads > 1 and not config.deterministic
        return ThreadRange(first=config.threads, most=config.threads, measured=False, told=told)
    if device != "cpu" or processes > 1 or config.compile:  # a compiled model would be compiled for each count
        return ThreadRange(first=default, most=default, measured=False)
    most = cores or usable_cores()
    return ThreadRange(first=most, most=most, measured=most > 1)


def fixed_threads(config: TrainConfig, cores: int | None) -> int:
    """Return a run's ``threads`` as it is recorded: what is asked for by field or variable, else 0.

    ``deterministic`` leaves no choice to a clock. A caller that gives ``cores`` has read the variable itself.
    """
    asked = config.threads or (0 if cores else wanted_threads() or 0)
    return asked or (cores or usable_cores() if config.deterministic else 0)


class Threads:
    """Watches a run's speed and chooses its threads."""

    def __init__(
        self,
        allowed: ThreadRange,
        rehearse: Callable[[float], object],
        use: Callable[[int], object],
        note: Callable[[str], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Begin with the first count.

        Args:
            allowed: Which counts may be tried.
            rehearse: Computes a part of a step, without an effect; may give up after so many seconds.
            use: Sets the count.
            note: Told of every change, in a line.
            clock: Seconds.
        """
        self.allowed, self.count = allowed, allowed.first
        self._rehearse, self._use, self._note, self._clock = rehearse, use, note, clock
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._reference: float | None = None
        self._trained_s = self._spent_s = 0.0
        self._patience = 1
        self._begun = False

    def before_step(self, steps_left: int) -> None:
        """Measure if the run has just begun, or its speed has changed; takes no time otherwise."""
        if self.allowed.told and not self._begun:
            self._say_if_collapsed()
        if not self.allowed.measured or (self._begun and steps_left < LEAST_STEPS):
            return
        slower = self._ratio() if self._begun else None
        if not self._begun:
            self._measure("")
        elif slower and self._spent_s <= URGENT_SHARE * self._trained_s:
            self._patience = 1
            self._measure(f"steps take {slower:.1f} times as long as before; ")
        elif self._curious() and self._spent_s <= SHARE / self._patience * self._trained_s:
            self._patience = min(16, 2 * self._patience)
            self._measure("")
        self._begun = True

    def step_took(self, seconds: float) -> None:
        """Take note of a step's time."""
        self._trained_s += seconds
        self._recent.append(seconds)
        if self._reference is None and len(self._recent) == WINDOW:
            self._reference = statistics.median(self._recent)

    def restore(self, count: int) -> None:
        """Begin with a count that was chosen before an interruption."""
        self.count = count

    def _say_if_collapsed(self) -> None:
        if self._reference is None:
            return
        ratio = statistics.median(self._recent) / self._reference
        if ratio > COLLAPSED:  # two slow steps in a row are not enough: it is said once
            self._begun = True
            self._note(
                f"steps take {ratio:.1f} times as long as at first, with the {self.count} CPU threads that were asked "
                "for: beside other work one thread may be faster, and where none is asked for the fastest is taken"
            )

    def _ratio(self) -> float | None:
        """Return how many times as long as after the last choice steps take, if that is clear."""
        if self._reference is None:
            return None
        last = list(self._recent)
        ratio = statistics.median(last) / self._reference
        sudden, latest = min(last[-2:]) / self._reference, last[-1] / self._reference
        if latest > STUCK:
            return latest
        return max(ratio, sudden) if ratio > CHANGED or sudden > COLLAPSED else None

    def _curious(self) -> bool:
        """Tell whether another count may be the faster one now, though training became no slower."""
        if self._reference is None:
            return False
        return self.count < self.allowed.most or statistics.median(self._recent) < self._reference / CHANGED

    def _measure(self, why: str) -> None:
        """Time a count, then more, as long as they are not much slower; if none is faster, then fewer.

        At first that is one thread: a time to beat is needed before others are tried, which may be many times slower.
        """
        begin, before = self._clock(), self.count
        start = before if self._begun else 1
        times = {start: self._time(start, None)}
        for factor in (2.0, 0.5):
            tried = start
            while (following := min(self.allowed.most, max(1, int(tried * factor)))) != tried:
                fastest_s = min(times.values())
                times[following] = self._time(following, fastest_s)
                if times[following] > HOPELESS * fastest_s:
                    break
                tried = following
            if _chosen(times, before) > before:
                break
        self.count = _chosen(times, before)
        self._use(self.count)
        self._recent.clear()
        self._reference = None
        self._spent_s += self._clock() - begin
        if self.count != before:
            self._patience = 1
            listed = ", ".join(f"{n}: {times[n]:.2g}" for n in sorted(times))
            self._note(
                f"{why}training goes on with {self.count} CPU thread{'s' * (self.count > 1)} instead of {before} "
                f"(seconds of a forward pass by threads: {listed})"
            )

    def _time(self, count: int, fastest_s: float | None) -> float:
        """Return the mean seconds of a rehearsal with a count; the first after a change of the count only warms up."""
        self._use(count)
        limit = math.inf if fastest_s is None else HOPELESS * fastest_s + WARMING_S
        took = self._one(limit)
        if took > min(limit, LONG_S):
            return took
        times: list[float] = []
        while len(times) < REPEATS and sum(times) < LONG_S:
            times.append(self._one(math.inf))
            if fastest_s is not None and statistics.fmean(times) > HOPELESS * fastest_s:
                break
        return statistics.fmean(times)

    def _one(self, limit_s: float) -> float:
        begin = self._clock()
        self._rehearse(limit_s)
        return self._clock() - begin


def _chosen(times: dict[int, float], before: int) -> int:
    """Return the fastest count, or the present one if none is clearly faster."""
    fastest = min(times, key=lambda n: times[n])
    return fastest if times[fastest] <= WORTH * times.get(before, math.inf) else before
