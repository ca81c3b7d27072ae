"""The search for the layers that INT8 leaves in float: those that do not pay on this device, then those that cost most.

Every choice only rewrites Q/DQ pairs from one calibration. First each part of the graph
(``qdeploy.export.int8.units``) is left in float alone, and its time and error are measured. Then, step by step, the
part whose floats save most time is left in float, as long as it saves more than ``SearchConfig.worth`` and more than
the noise of the clock; of parts that the clock cannot tell apart the one that leaves least in float is taken. So the
same graph gets the same choice again. If the result loses more accuracy than allowed, the parts that cause most error
for the time they save follow, as few as the budget needs, found by bisection; if it answers an image of the stress set
badly, those that cause most error there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from qdeploy.core.budget import AccuracyBudget
from qdeploy.core.machine import compute_threads
from qdeploy.core.metrics import Floats, paired_difference, sqnr_db
from qdeploy.core.progress import Progress
from qdeploy.data.dataset import Split
from qdeploy.export.graph.parity import INT8_MIN_SQNR_DB, RUN_BATCH, run_session
from qdeploy.export.int8.choices import Choices
from qdeploy.export.int8.clock import Clock, FloatNodes, Forecast, Timing, timing_of
from qdeploy.export.int8.float_choice import Found, SearchConfig, Survey, Tried
from qdeploy.export.int8.units import Unit, disjoint, nodes_of, quantizable, units_of
from qdeploy.export.stress import StressSet
from qdeploy.runtime.session import Session

ERROR_IMAGES = 32
"""Validation images that a part's error is measured on."""
TOGETHER = 10
"""Sessions timed in turn; more would only cost memory."""
SIDE_BY_SIDE = 4
"""Parts that are tried beside what is in float already, in each step."""
OPENINGS = 2
"""Times that each choice of a step is opened anew."""
HARDLY_FASTER = 1.05
"""Times fp32's speed; below it the search also begins from float."""
STEP_OPENINGS = 30
"""Graphs that the steps open, as the forecast reckons."""


class _OutOfTimeError(Exception):
    """The search has no time left."""


@dataclass(frozen=True)
class _Way:
    """Direction of the search: parts are moved one by one to float, or to INT8."""

    join: Callable[[FloatNodes, FloatNodes], FloatNodes]
    """Returns what is in float once a part has been moved."""
    names: Callable[[Sequence[Unit]], tuple[str, ...]]
    """Returns what a choice is called."""


TO_FLOAT = _Way(frozenset.union, lambda units: tuple(u.name for u in units))


@dataclass(kw_only=True)
class FloatSearch:
    """The search for one encoding."""

    choices: Choices
    """The graphs to choose from."""
    images: Split
    """Validation images that the choice is made on."""
    before: Floats
    """Logits of the float graph for ``images``, ``[N, K]``."""
    budget: AccuracyBudget
    stress: StressSet | None = None
    """Images that no choice may answer badly; None where none are asked."""
    clock: Clock | None
    """None if this machine's speed says nothing about the target."""
    config: SearchConfig
    note: Callable[[str], None]
    progress: Progress
    """Called with the seconds that have passed, and the seconds that the search is expected to take."""
    now: Callable[[], float] = time.perf_counter
    """Returns the time in seconds."""
    _tried: dict[FloatNodes, Tried] = field(init=False, default_factory=dict)
    _survey: Survey = field(init=False)
    _forecast: Forecast = field(init=False)
    _best: Tried = field(init=False)
    """What is taken if the search is stopped."""

    def __post_init__(self) -> None:
        self._forecast = Forecast(limit_s=self.config.seconds, now=self.now)
        self._survey = Survey()

    def search(self, start: FloatNodes = frozenset()) -> Found:
        """Find what stays in float.

        If the time is up, or the user interrupts the search, the best choice so far is taken, with a note.

        Args:
            start: Nodes that stay in float in any case.
        """
        whole = self._best = self._try((), start)
        try:
            self._measure_parts(start)
            if self.clock:
                path = self._descend(whole, self._survey.gains, TO_FLOAT)
                self._best, _ = self._settle(path, self._tells_hardly_faster)
                if (self._best.speed or 0.0) < HARDLY_FASTER:
                    self._from_float(start)
            if not self._sound(self._best):
                self._repair()
        except _OutOfTimeError:
            self.note(f"float search: stopped after {self.config.seconds:g} s; the best choice so far is taken")
        except KeyboardInterrupt:
            self.note("float search: interrupted; the best choice so far is taken (once more stops the export)")
        return self._found()

    def pinned(self, nodes: FloatNodes, names: Sequence[str]) -> Found:
        """Measure one given choice instead of searching.

        Args:
            nodes: What stays in float.
            names: The parts that stay in float, as the user named them.
        """
        self._best = self._try(names, nodes)
        return self._found()

    def _found(self) -> Found:
        best = self._best
        return Found(
            float_units=best.names,
            float_nodes=tuple(sorted(best.nodes)),
            model=self.choices.model_of(best.nodes),
            units=self._survey.report(),
            choices=tuple(t.report(t is best) for t in self._tried.values() if t is best or math.isfinite(t.sqnr)),
        )

    def _measure_parts(self, start: FloatNodes) -> None:
        """Leave each part in float alone, and measure what that changes; at most half of the time is spent on it."""
        every = units_of(self.choices.model, self.choices.encoding, self.config.modules, self.config.roles)
        units = [u for u in every if u.nodes - start]
        timed = self.config.runs if self.clock else 0
        self._forecast.plan(len(units) + (STEP_OPENINGS if timed else 0), ERROR_IMAGES + timed)
        self.note(f"float search: {len(units)} parts, about {self._forecast.total_s():.0f} s")
        for group in _groups(units):
            if self._forecast.passed_s() > self.config.seconds / 2:
                self.note(f"float search: no time for {len(units) - len(self._survey.units)} of {len(units)} parts")
                return
            nodes = [start, *(u.nodes | start for u in group)]
            with self._opened(nodes) as (whole, *sessions):
                with ThreadPoolExecutor(compute_threads()) as pool:
                    self._survey.noise, *errors = pool.map(self._squared_error, (whole, *sessions))
                self._survey.errors.update((u.name, error) for u, error in zip(group, errors, strict=True))
                self._survey.units.extend(group)
                if self.clock:
                    base, *times = self.clock(nodes, [whole, *sessions], self.config.runs, self._forecast.left_s())
                    self._survey.gains.update((u.name, ms / base - 1) for u, ms in zip(group, times, strict=True))

    def _descend(self, current: Tried, gains: Mapping[str, float], way: _Way) -> list[Tried]:
        """Move parts one by one while that saves time that counts; return what was passed.

        Args:
            current: Where to begin.
            gains: Share of the time that is lost by moving each part, the others being where they are at the beginning.
            way: Where they are moved to.
        """
        worth = self.config.worth
        hopeful = [u for u in self._survey.units if gains.get(u.name, 1.0) < worth / 2]
        ordered = sorted(hopeful, key=lambda u: gains[u.name])
        path, moved = [current], list[Unit]()
        while True:
            there = path[-1].nodes
            moves = {u.name: way.join(there, u.nodes) for u in ordered}
            ordered = [u for u in ordered if moves[u.name] != there]
            beside = ordered[:SIDE_BY_SIDE]
            first = self._time([there, *(moves[u.name] for u in beside)], openings=1).ms
            quick = {u: ms for u, ms in zip(beside, first[1:], strict=True) if 1 - ms / first[0] > worth / 4}
            if not quick:
                return path
            choices = [there, *(moves[u.name] for u in quick)]
            timing = self._time(choices, (first[0], *quick.values()), enough=self._tells_best)
            base, *times = timing.ms
            if 1 - min(times) / base < max(worth, timing.noise):
                return path
            tie = base * max(worth / 2, timing.noise)
            ties = [u for u, ms in zip(quick, times, strict=True) if ms <= min(times) + tie]
            moved.append(min(ties, key=lambda u: self._simplicity(moves[u.name])))
            path.append(self._try(way.names(moved), moves[moved[-1].name]))
            if math.isfinite(path[-1].sqnr):
                self._best = path[-1]

    def _settle(self, path: Sequence[Tried], enough: Callable[[Timing], bool] | None = None) -> tuple[Tried, float]:
        """Time what was passed in turn with fp32; return its end, and the noise of that.

        An end that has nothing in INT8, and so no error at all, is the float graph: what was before counts.
        """
        path = [t for t in dict.fromkeys(path) if math.isfinite(t.sqnr)] or list(path)
        timing = self._time([None, *(t.nodes for t in path)], enough=enough)
        for one, ms in zip(path, timing.ms[1:], strict=True):
            one.speed = timing.ms[0] / ms
        return path[-1], timing.noise

    def _from_float(self, start: FloatNodes) -> None:
        """Try in INT8 only what is faster than fp32 when all else is float, the most rewarding first."""
        every = quantizable(self.choices.model, self.choices.encoding) | start
        self.note(
            f"float search: {self._best.speed or 0.0:.2f}x fp32 so far; trying the other end, everything in float"
        )
        way = _Way(lambda nodes, part: nodes - (part - start), lambda us: (f"all but {', '.join(u.name for u in us)}",))
        gains: dict[str, float] = {}
        for group in _groups(self._survey.units):
            timing = self._time([None, *(way.join(every, u.nodes) for u in group)], openings=1)
            gains.update((u.name, ms / timing.ms[0] - 1) for u, ms in zip(group, timing.ms[1:], strict=True))
        chosen = self._best
        path = self._descend(self._try(("everything",), every), gains, way)
        other, noise = self._settle([chosen, *path[1:]])
        saved = 1 - (chosen.speed or 0.0) / (other.speed or 1.0)
        self._best = other if saved >= max(self.config.worth, noise) else chosen

    def _repair(self) -> None:
        """Leave as few further parts in float as the budget and the stress set need, by bisection.

        That takes log2(parts) choices. What needs every part in float, for the stress set alone, is left as it is: the
        verdict then says which image is answered badly.
        """
        chosen = self._best
        ordered = disjoint(self._most_harmful(chosen))

        def with_first(count: int) -> Tried:
            names = (*chosen.names, *(u.name for u in ordered[:count]))
            return self._try(names, nodes_of(ordered[:count]) | chosen.nodes)

        few, many = 0, len(ordered)
        while many - few > 1:
            middle = (few + many) // 2
            tried = with_first(middle)
            if self._sound(tried):
                many, self._best = middle, tried
            else:
                few = middle
        if many == len(ordered) and self._accurate(chosen):
            self._best = chosen
            return
        self._best = with_first(many)
        why = "the stress set" if self._accurate(chosen) else "accuracy"
        self.note(f"float search: left {many} more parts in float for {why}")
        if self.clock:
            self._settle([self._best])

    def _most_harmful(self, chosen: Tried) -> list[Unit]:
        """Return the parts that are in INT8, those first that do most harm: to accuracy, else to the stress set."""
        rest = [u for u in self._survey.units if u.nodes - chosen.nodes]
        if self.stress is None or not self._accurate(chosen):
            return sorted(rest, key=self._survey.worth_in_float, reverse=True)
        errors: list[float] = []
        for group in _groups(rest):
            with self._opened([chosen.nodes | u.nodes for u in group]) as sessions:
                errors += map(self.stress.squared_error, sessions)
        return [u for _, _, u in sorted(zip(errors, range(len(rest)), rest, strict=True))]

    def _try(self, names: Sequence[str], nodes: FloatNodes) -> Tried:
        """Make and measure a graph on all validation images; the same one is made once."""
        if nodes not in self._tried:
            begin = self.now()
            with self._opened([nodes]) as (session,):
                self._forecast.opening_s = self.now() - begin
                begin = self.now()
                logits = run_session(session, self.images.pixels)
                self._forecast.image_s = (self.now() - begin) * compute_threads() / len(self.images)
                stressed = self.stress is not None and self.stress.judge(session, self.before, logits).mendable
            self._tried[nodes] = Tried(
                names=tuple(names),
                nodes=nodes,
                sqnr=sqnr_db(self.before, logits),
                difference=paired_difference(logits, self.before, self.images.labels),
                stressed=stressed,
            )
        return self._tried[nodes]

    def _time(
        self,
        choices: Sequence[FloatNodes | None],
        first: Sequence[float] = (),
        openings: int = OPENINGS,
        enough: Callable[[Timing], bool] | None = None,
    ) -> Timing:
        """Time choices in turn, each opened anew; several openings are repeated until they tell enough.

        Args:
            choices: What each leaves in float; None is the float graph.
            first: What they took when they were opened before.
            openings: How often each is opened at least; 1 is not repeated.
            enough: Whether a timing suffices; by default if two choices can be told apart that differ by what counts.
        """
        if self.clock is None or len(choices) < 2:
            return Timing(ms=(1.0,) * len(choices), noise=0.0, margin=0.0)
        most = openings * self.config.repeats if openings > 1 else 1
        found = [first] if first else []
        while True:
            with self._opened(choices) as sessions:
                found.append(self.clock(choices, sessions, self.config.runs, self._forecast.left_s()))
            timing = timing_of(found)
            if len(found) == most or (len(found) >= openings and (enough or self._is_quiet)(timing)):
                return timing

    def _is_quiet(self, timing: Timing) -> bool:
        return timing.noise <= self.config.worth / 2

    def _tells_best(self, timing: Timing) -> bool:
        """Tell whether it is clear if the best of the choices saves enough against the first, and which is taken."""
        base, *times = timing.ms
        best, *others = sorted(times)
        worth, margin = self.config.worth, timing.margin
        if (surplus := 1 - best / base - worth) <= margin:
            return surplus <= -margin
        return self._is_quiet(timing) or all(ms - best >= base * (worth / 2 + margin) for ms in others)

    def _tells_hardly_faster(self, timing: Timing) -> bool:
        """Tell whether it is clear if the last choice is hardly faster than the first."""
        return self._is_quiet(timing) or abs(timing.ms[0] / timing.ms[-1] / HARDLY_FASTER - 1) >= timing.margin

    @contextmanager
    def _opened(self, choices: Sequence[FloatNodes | None]) -> Iterator[list[Session]]:
        """Open graphs while there is time, and close them."""
        if self._tried and self._forecast.left_s() <= 0:
            raise _OutOfTimeError
        self.progress(round(self._forecast.passed_s()), round(self._forecast.total_s()))
        with self.choices.opened(choices) as sessions:
            yield sessions
        self._forecast.opened(len(choices))

    def _squared_error(self, session: Session) -> float:
        """Return the squared error of the logits on some images."""
        few = self.images.pixels[:ERROR_IMAGES]
        after = np.concatenate([session.infer(few[i : i + RUN_BATCH])[0] for i in range(0, len(few), RUN_BATCH)])
        return float(np.square(self.before[: len(few)].astype(np.float64) - after).sum())

    def _sound(self, tried: Tried) -> bool:
        return self._accurate(tried) and not tried.stressed

    def _accurate(self, tried: Tried) -> bool:
        return tried.sqnr >= INT8_MIN_SQNR_DB and self.budget.allows(tried.difference)

    def _simplicity(self, nodes: FloatNodes) -> tuple[int, int, list[str]]:
        """Return what the simplest choice has least of: nodes in float, and bytes of their weights."""
        read = {i for n in self.choices.model.graph.node if n.name in nodes for i in n.input}
        weights = sum(i.ByteSize() for i in self.choices.model.graph.initializer if i.name in read)
        return len(nodes), weights, sorted(nodes)


def _groups(units: Sequence[Unit]) -> list[Sequence[Unit]]:
    return [units[i : i + TOGETHER] for i in range(0, len(units), TOGETHER)]
