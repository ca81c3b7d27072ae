"""Types of the float search: its configuration, its measurements of each part, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx

from qdeploy.core.errors import InputError
from qdeploy.core.intervals import PairedDifference
from qdeploy.export.int8.clock import FloatNodes
from qdeploy.export.int8.units import MAX_MODULES, MAX_ROLES, Unit

LEAST_GAIN = 0.05
"""Share of the time that a part's integers save at least, where its error is weighed against it: smaller shares are
too uncertain to decide what comes first."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """The configuration of the float search: its effort, and the saving that counts."""

    seconds: float = 120.0
    """After so much time the best choice so far is taken."""
    runs: int = 35
    """Timed runs of each opened graph; what differs between two openings is more than what more runs would tell."""
    worth: float = 0.02
    """Share of the whole time that leaving a part in float must save."""
    repeats: int = 6
    """Choices are opened and timed at most twice so often: until it is clear whether the best of them saves ``worth``,
    and if it does, that no other comes within half of that; or, of the others, until the noise is half of it."""
    modules: int = MAX_MODULES
    """Modules that are tried, at most."""
    roles: int = MAX_ROLES
    """Roles, such as every squeeze-excitation, that are tried, at most."""

    def __post_init__(self) -> None:
        if not 1 <= self.seconds <= 86_400:
            raise InputError("the search must take between 1 and 86400 seconds", found=f"{self.seconds:g}")
        if self.runs < 1 or self.repeats < 1 or self.modules < 1 or self.roles < 0 or not 0 < self.worth < 1:
            raise InputError(f"a search cannot be made with {self}")


@dataclass(frozen=True, kw_only=True)
class UnitCost:
    """What INT8 does to one part, all others being INT8."""

    unit: str
    operators: int
    """Nodes of the graph in it that INT8 can hold."""
    time_gain: float | None
    """Share of the time that the part's INT8 saves; negative where its floats are faster. None if not timed."""
    error: float
    """Share of the squared error of the logits that goes away when it is left in float."""


@dataclass(frozen=True, kw_only=True)
class FloatChoice:
    """One choice of what stays in float, measured whole."""

    float_units: tuple[str, ...]
    sqnr_db: float
    val_drop: float
    """Points of validation top-1 that the choice costs against fp32."""
    val_margin: float
    """Half width of the 95 % interval of ``val_drop``, in points."""
    times_fp32_speed: float | None
    """Speed of the choice divided by fp32's, from interleaved runs; None if it was not timed."""
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class Found:
    """The result of the float search."""

    float_units: tuple[str, ...]
    float_nodes: tuple[str, ...]
    model: onnx.ModelProto
    units: tuple[UnitCost, ...]
    choices: tuple[FloatChoice, ...]


@dataclass(kw_only=True, eq=False)
class Tried:
    """A choice that was made and measured on all validation images."""

    names: tuple[str, ...]
    """Names of the parts in float."""
    nodes: FloatNodes
    sqnr: float
    difference: PairedDifference
    stressed: bool = False
    """Whether it answers an image of the stress set badly that fp32 answers."""
    speed: float | None = None
    """Speed divided by fp32's; None until it is timed."""

    def report(self, chosen: bool) -> FloatChoice:
        """Return what the export's report says of it."""
        return FloatChoice(
            float_units=self.names,
            sqnr_db=self.sqnr,
            val_drop=-self.difference.points,
            val_margin=self.difference.margin95,
            times_fp32_speed=self.speed,
            chosen=chosen,
        )


@dataclass(kw_only=True)
class Survey:
    """What each part's integers cost and gain, all others being INT8."""

    units: list[Unit] = field(default_factory=list)
    """The parts that have been measured."""
    noise: float = 0.0
    """Squared error of the logits with everything in INT8."""
    errors: dict[str, float] = field(default_factory=dict)
    """Squared error of the logits with one part in float, by the part's name."""
    gains: dict[str, float] = field(default_factory=dict)
    """Share of the time that a part's integers save; empty if nothing is timed."""

    def worth_in_float(self, unit: Unit) -> float:
        """Return the error that a part causes for the time that its integers save."""
        return (self.noise - self.errors[unit.name]) / max(LEAST_GAIN, self.gains.get(unit.name, 0.0))

    def report(self) -> tuple[UnitCost, ...]:
        """Return what the export's report says of the parts."""
        return tuple(
            UnitCost(
                unit=u.name,
                operators=len(u.nodes),
                time_gain=self.gains.get(u.name),
                error=1 - self.errors[u.name] / max(self.noise, 1e-30),
            )
            for u in self.units
        )
