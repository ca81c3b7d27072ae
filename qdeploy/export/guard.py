"""The search for the layers that INT8 leaves in float: those that do not pay on this device, then those that cost most.

Every trial only rewrites Q/DQ pairs from one calibration. First each unit (``qdeploy.export.units``) is left in float
alone, and its time and error are measured. Then the units whose integers are slower than their floats are left in
float, as many as make the whole fastest. If the result loses more accuracy than allowed, the units that cost most
error for the time they save follow, as few as the budget needs, found by bisection.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from qdeploy.core.artifact import Card
from qdeploy.core.metrics import Floats, PairedDifference, paired_difference, sqnr_db
from qdeploy.export.calibrate import Tick
from qdeploy.export.encodings import Encoding
from qdeploy.export.made import Note, open_graph
from qdeploy.export.parity import INT8_MIN_SQNR_DB, run_session
from qdeploy.export.quantize import quantize
from qdeploy.export.ranges import Range
from qdeploy.export.units import Unit, disjoint, nodes_of, quantizable, units_of
from qdeploy.runtime.bench import time_rounds
from qdeploy.runtime.bench.rounds import Rounds
from qdeploy.runtime.session import Session

ERROR_IMAGES = 128
"""Validation images that a unit's error is measured on."""
BATCH = 8
"""Each open session keeps the memory of its largest batch."""
TOGETHER = 10
"""Sessions timed in turn; more would only cost memory."""
TIMING_SECONDS = 15.0
"""Of sessions timed in turn: slow models get fewer runs."""
TIMINGS = 3
"""On a noisy machine they are timed so many times."""
MAX_KEPT = 8
"""Units tried beside each other once the first ones are in float."""
HARDLY_FASTER = 1.05
"""Times fp32's speed; below it the search also begins from float."""
CLOSE = 0.015
"""Speeds that differ by less, or by less than the noise, are equal: then what leaves less in float is taken."""


@dataclass(frozen=True, kw_only=True)
class UnitCost:
    """What INT8 does to one unit, all others being INT8."""

    unit: str
    layers: int
    time_gain: float | None
    """Share of the time that the unit's INT8 saves; negative where its floats are faster. None if not timed."""
    error: float
    """Share of the squared error of the logits that goes away when it is left in float."""


@dataclass(frozen=True, kw_only=True)
class GuardTrial:
    """One choice of what stays in float, measured whole."""

    float_units: tuple[str, ...]
    sqnr_db: float
    val_drop: float
    """Points of validation top-1 that it costs."""
    val_margin: float
    """Half width of the 95 % interval of that."""
    times_fp32_speed: float | None
    """By the lower quartiles of interleaved runs; None if it was not timed."""
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What INT8 may cost, in points of top-1."""

    points: float

    def allows(self, difference: PairedDifference) -> bool:
        """Tell whether the loss is within the budget, or is not beyond noise: on 12 images one is 8 points."""
        loss = -difference.points
        return loss <= self.points or loss <= difference.margin95


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the search found."""

    float_units: tuple[str, ...]
    float_nodes: tuple[str, ...]
    model: onnx.ModelProto
    session: Session
    difference: PairedDifference
    """Its validation accuracy minus that of fp32."""
    within_budget: bool
    units: tuple[UnitCost, ...]
    trials: tuple[GuardTrial, ...]


@dataclass(kw_only=True)
class Guard:
    """The search for one encoding."""

    model: onnx.ModelProto
    """The float graph."""
    session: Session
    card: Card
    """That the trials are opened with."""
    encoding: Encoding
    ranges: Mapping[str, Range]
    biases: Mapping[str, Floats]
    """Of layers whose bias expects rounded weights."""
    pixels: NDArray[np.uint8]
    """Validation images."""
    labels: NDArray[np.int64]
    images: NDArray[np.uint8]
    """Images that are timed."""
    budget: Budget
    runs: int
    """Timed runs of each candidate."""
    timed: bool
    """Whether this machine's speed says something about the target."""
    note: Note
    tick: Tick
    """Called with the number of parts measured and their total."""
    _before: Floats = field(init=False)
    _tried: dict[frozenset[str], _Tried] = field(init=False, default_factory=dict)
    _close: float = field(init=False, default=CLOSE)
    """Share of a time below which the last timing cannot tell two sessions apart: two standard errors."""

    def __post_init__(self) -> None:
        self._before = run_session(self.session, self.pixels)

    def search(self, start: frozenset[str] = frozenset()) -> Choice:
        """Find what stays in float.

        Args:
            start: Nodes that stay in float in any case.
        """
        begin = time.perf_counter()
        chosen = whole = self._try((), start)
        survey = self._survey(whole, start, time.perf_counter() - begin)
        if self.timed:
            chosen = self._fastest(self._prefixes(start, (), survey.slow()))
            chosen = self._second_look(survey, start, chosen)
            if (chosen.speed or 0.0) < HARDLY_FASTER:
                chosen = self._from_float(survey, start, chosen)
        if not self._sound(chosen):
            chosen = self._repair(survey, start, chosen)
        return Choice(
            float_units=tuple(u.name for u in chosen.units),
            float_nodes=tuple(sorted(chosen.nodes)),
            model=chosen.model,
            session=chosen.session,
            difference=chosen.difference,
            within_budget=self._sound(chosen),
            units=survey.report(),
            trials=tuple(t.report(t is chosen) for t in self._tried.values()),
        )

    def _survey(self, whole: _Tried, start: frozenset[str], seconds: float) -> _Survey:
        """Leave each unit in float alone, and measure what that changes; ``seconds`` is what one trial took."""
        units = [u for u in units_of(self.model, self.encoding) if u.nodes - start]
        trials = len(units) + (3 * MAX_KEPT if self.timed else 0)
        self.note(
            f"guard: {len(units)} parts, at most {trials} trials, about {seconds * trials:.0f} s and their timing"
        )
        sessions: dict[str, Session] = {}
        for unit in units:
            _, sessions[unit.name] = self._make(unit.nodes | start)
            self.tick(len(sessions), len(units))
        return _Survey(
            units=units,
            noise=self._noise(whole.session),
            noises={name: self._noise(session) for name, session in sessions.items()},
            gains=self._gains(whole.session, sessions) if self.timed else dict.fromkeys(sessions),
            worth_a_try=self._worth_a_try,
        )

    def _try(self, float_units: Sequence[Unit], start: frozenset[str]) -> _Tried:
        """Make and measure a graph on all validation images; the same one is made once."""
        nodes = nodes_of(float_units) | start
        if nodes not in self._tried:
            model, session = self._make(nodes)
            logits = run_session(session, self.pixels, BATCH)
            self._tried[nodes] = _Tried(
                units=tuple(float_units),
                nodes=nodes,
                model=model,
                session=session,
                sqnr=sqnr_db(self._before, logits),
                difference=paired_difference(logits, self._before, self.labels),
            )
        return self._tried[nodes]

    def _make(self, nodes: frozenset[str]) -> tuple[onnx.ModelProto, Session]:
        model = quantize(self.model, self.ranges, self.encoding, nodes, self.biases)
        return model, open_graph(model, self.card)

    def _noise(self, session: Session) -> float:
        """Give the squared error of the logits on some images."""
        few = self.pixels[:ERROR_IMAGES]
        return float(np.square(self._before[: len(few)].astype(np.float64) - run_session(session, few, BATCH)).sum())

    def _gains(self, whole: Session, sessions: Mapping[str, Session]) -> dict[str, float | None]:
        """Give the share of the whole's time that each unit's integers save."""
        gains: dict[str, float | None] = {}
        names, close = list(sessions), CLOSE
        for i in range(0, len(names), TOGETHER):
            some = names[i : i + TOGETHER]
            base, *times = self._time([whole, *(sessions[n] for n in some)])
            gains.update((name, mine / base - 1) for name, mine in zip(some, times, strict=True))
            close = max(close, self._close)
        self._close = close
        return gains

    def _time(self, sessions: Sequence[Session]) -> list[float]:
        """Give each session's lower quartile in milliseconds: what else runs on the machine only adds time."""
        rounds: list[Rounds] = [[] for _ in sessions]
        for _ in range(TIMINGS):
            more = time_rounds(sessions, [self.images] * len(sessions), self.runs, TIMING_SECONDS)
            rounds = [[*mine, *new] for mine, new in zip(rounds, more, strict=True)]
            self._close = max(CLOSE, noise_of(rounds))
            if self._close < 2 * CLOSE:
                break
        return [float(np.percentile(mine, 25)) for mine in rounds]

    @property
    def _worth_a_try(self) -> float:
        """One standard error: whoever gets beyond it is timed again, as part of a whole, and by twice of it."""
        return max(CLOSE, self._close / 2)

    def _prefixes(self, start: frozenset[str], fixed: tuple[Unit, ...], ordered: Sequence[Unit]) -> list[_Tried]:
        return [self._try((*fixed, *ordered[:k]), start) for k in range(min(len(ordered), MAX_KEPT) + 1)]

    def _fastest(self, tried: Sequence[_Tried]) -> _Tried:
        """Time trials in turn with fp32, and give the fastest; of equal ones that with least in float.

        One that has nothing in INT8, and so no error at all, is fp32 by another name: it counts only if all are.
        """
        tried = [t for t in dict.fromkeys(tried) if math.isfinite(t.sqnr)] or list(tried)
        fp32, *times = self._time([self.session, *(t.session for t in tried)])
        for one, mine in zip(tried, times, strict=True):
            one.speed = fp32 / mine
        best = max(t.speed or 0.0 for t in tried)
        return min((t for t in tried if (t.speed or 0.0) >= best * (1 - self._close)), key=lambda t: len(t.nodes))

    def _second_look(self, survey: _Survey, start: frozenset[str], chosen: _Tried) -> _Tried:
        """Try what was next in line beside what is in float now: neighbours in float save conversions."""
        rest = sorted((u for u in survey.units if u.nodes - chosen.nodes), key=survey.gain)[:MAX_KEPT]
        base, *times = self._time([chosen.session, *(self._make(chosen.nodes | u.nodes)[1] for u in rest)])
        paying = [(mine, u) for mine, u in zip(times, rest, strict=True) if mine < base * (1 - self._worth_a_try)]
        ordered = disjoint(u for _, u in sorted(paying, key=lambda p: p[0]))
        return self._fastest(self._prefixes(start, chosen.units, ordered)) if ordered else chosen

    def _from_float(self, survey: _Survey, start: frozenset[str], chosen: _Tried) -> _Tried:
        """Try in INT8 only what is faster than fp32 when all else is float, the most rewarding first."""
        every = quantizable(self.model, self.encoding) | start
        self.note(f"guard: {chosen.speed or 0.0:.2f}x fp32 so far; trying the other end, everything in float")
        gains = self._gains(self.session, {u.name: self._make(every - u.nodes)[1] for u in survey.units})
        rewarding = [u for u in survey.units if (gains[u.name] or 0.0) < -self._worth_a_try]
        paying = disjoint(sorted(rewarding, key=lambda u: gains[u.name] or 0.0))
        tried = []
        for k in range(1, min(len(paying), MAX_KEPT) + 1):
            nodes = every - nodes_of(paying[:k])
            name = f"all but {', '.join(u.name for u in paying[:k])}"
            tried.append(self._try((Unit(name=name, nodes=nodes, layers=len(nodes)),), start))
        return self._fastest([chosen, *tried]) if tried else chosen

    def _sound(self, tried: _Tried) -> bool:
        return tried.sqnr >= INT8_MIN_SQNR_DB and self.budget.allows(tried.difference)

    def _repair(self, survey: _Survey, start: frozenset[str], chosen: _Tried) -> _Tried:
        """Leave as few further units in float as the budget needs; by bisection, so in log2(units) trials."""
        ordered = disjoint(
            sorted((u for u in survey.units if u.nodes - chosen.nodes), key=survey.worth_in_float, reverse=True)
        )
        few, many = 0, len(ordered)
        while many - few > 1:
            middle = (few + many) // 2
            sound = self._sound(self._try((*chosen.units, *ordered[:middle]), start))
            few, many = (few, middle) if sound else (middle, many)
        repaired = self._try((*chosen.units, *ordered[:many]), start)
        self.note(f"guard: left {many} more parts in float for accuracy")
        return self._fastest([repaired]) if self.timed else repaired


def noise_of(rounds: Sequence[Rounds]) -> float:
    """Give twice the standard error of sessions' times against the first's, as a share, from rounds in turn.

    The even and the odd rounds give each ratio of lower quartiles twice; the root of the mean squared difference of
    their logarithms is twice the standard error of the ratio over all rounds.
    """
    if len(rounds) < 2:
        return 0.0
    even, odd = (np.log([np.percentile(mine[half::2], 25) for mine in rounds]) for half in (0, 1))
    return float(np.sqrt(np.mean(np.square((even - even[0]) - (odd - odd[0]))[1:])))


@dataclass(kw_only=True, eq=False)
class _Tried:
    units: tuple[Unit, ...]
    nodes: frozenset[str]
    model: onnx.ModelProto
    session: Session
    sqnr: float
    difference: PairedDifference
    speed: float | None = None

    def report(self, chosen: bool) -> GuardTrial:
        return GuardTrial(
            float_units=tuple(u.name for u in self.units),
            sqnr_db=self.sqnr,
            val_drop=-self.difference.points,
            val_margin=self.difference.margin95,
            times_fp32_speed=self.speed,
            chosen=chosen,
        )


@dataclass(frozen=True, kw_only=True)
class _Survey:
    """What each unit's integers cost and gain, all others being INT8."""

    units: list[Unit]
    noise: float
    """Squared error of the logits with everything in INT8."""
    noises: dict[str, float]
    """The same with one unit in float."""
    gains: dict[str, float | None]
    worth_a_try: float
    """A loss by integers beyond this is looked at again."""

    def gain(self, unit: Unit) -> float:
        """Give the share of the time that a unit's integers save; 0 if nothing was timed."""
        return self.gains[unit.name] or 0.0

    def slow(self) -> list[Unit]:
        """Give the units whose floats are faster, the one that loses most first; of overlapping ones the first."""
        return disjoint(sorted((u for u in self.units if self.gain(u) < -self.worth_a_try), key=self.gain))

    def worth_in_float(self, unit: Unit) -> float:
        """Give the error that a unit causes for the time that its integers save."""
        return (self.noise - self.noises[unit.name]) / max(CLOSE, self.gain(unit))

    def report(self) -> tuple[UnitCost, ...]:
        return tuple(
            UnitCost(
                unit=u.name,
                layers=u.layers,
                time_gain=self.gains[u.name],
                error=1 - self.noises[u.name] / max(self.noise, 1e-30),
            )
            for u in self.units
        )
