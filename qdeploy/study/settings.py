"""The configuration of a sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from qdeploy.core.errors import InputError
from qdeploy.core.machine import MOST_THREADS, native_target, usable_cores
from qdeploy.core.records import decode

DEFAULT_BUDGET_MINUTES = 60.0
"""Budget of a sweep over the whole grid for which neither epochs nor a budget are given."""
OWN_OPTIONS = ("model", "model_fields", "data", "recipe", "epochs", "seed", "device", "tensorboard", "threads")
"""Fields of a recipe that ``settings`` may not change: the sweep has an option for them, or they mean nothing here."""

DEVICE_TARGET = "cortex-m"
"""Encoding of the INT8 files of sweeps for microcontrollers, whatever CPU the sweep runs on."""
LATER = {"max_params", "max_flash", "max_ram", "baseline", "max_drop", "threads"}
"""Fields that older sweeps do not have; they are written where they are given."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Everything that decides a sweep."""

    data: str | None = None
    """A published data set or a folder with a sub-folder per class; by default the recipe's."""
    models: tuple[str, ...] = ()
    """Names of ``qdeploy models``; none stands for the whole MobileViT grid."""
    recipe: str = "small"
    """Name of the recipe that trains every model; the recipe's own model is not used."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of the recipe to change, the same for every model."""
    epochs: int | None = None
    """Epochs of every model, by default the recipe's; with a budget, the most epochs of any model."""
    budget_minutes: float | None = None
    """Time for the whole sweep; with it the models are trained by successive halving."""
    max_params: int | None = None
    """Models with more parameters are left out; the baseline is trained all the same."""
    max_flash: int | None = None
    """Bytes of flash of a whole program on a Cortex-M, as ``qdeploy inspect`` forecasts; models that need more are left
    out. With this or the next, INT8 is for ``DEVICE_TARGET`` and leaves no layer in float: what is faster on this CPU
    says nothing of that one."""
    max_ram: int | None = None
    """Bytes of RAM, likewise."""
    baseline: str | None = None
    """Model that the others are judged against; it is trained with them."""
    max_drop: float = 1.0
    """Points of test top-1 by which a model may be below the baseline."""
    seed: int | None = None
    """Seed of every training; by default the recipe's."""
    device: str = "auto"
    """Device of training: auto, cpu, cuda or mps. Latency is always that of one CPU thread of this machine."""
    jobs: int = 1
    """Trials at a time on one machine; each gets an equal share of the cores."""
    threads: int = 0
    """CPU threads of one training; 0: what OMP_NUM_THREADS asks for, else the fastest count within that share."""
    ray: bool = False
    """Spread the training over the machines of a Ray cluster, or over this one if there is none."""

    def __post_init__(self) -> None:
        for i, name in enumerate(self.models):
            if name in self.models[:i]:
                raise InputError(f"`models` names '{name}' twice", fix="name each model once")
        if self.epochs is not None and not 1 <= self.epochs <= 100_000:
            raise InputError("`epochs` must be between 1 and 100000", found=self.epochs)
        if self.max_params is not None and self.max_params < 1:
            raise InputError("`max_params` must be at least 1", found=self.max_params)
        for name in ("max_flash", "max_ram"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise InputError(f"`{name}` must be at least 1 byte", found=limit)
        if not 0 <= self.max_drop <= 100:
            raise InputError("`max_drop` must be between 0 and 100 points", found=f"{self.max_drop:g}")
        budget = self.budget_minutes
        if budget is not None and not (budget > 0 and math.isfinite(budget)):
            raise InputError("`budget_minutes` must be positive", found=f"{budget:g}")
        if not 1 <= self.jobs <= usable_cores():
            raise InputError(
                f"`jobs` must be between 1 and {usable_cores()}, the cores of this machine", found=self.jobs
            )
        if not 0 <= self.threads <= MOST_THREADS:
            raise InputError(f"`threads` must be between 0 and {MOST_THREADS}", found=self.threads)
        for name in self.settings:
            if name in OWN_OPTIONS:
                raise InputError(f"the settings of a sweep cannot change '{name}'", fix="give it outside of them")

    @property
    def cores(self) -> int:
        """Cores for one trial."""
        return max(1, usable_cores() // self.jobs)

    @property
    def on_integers(self) -> bool:
        """Whether INT8 leaves no layer in float, for a microcontroller."""
        return self.max_flash is not None or self.max_ram is not None

    @property
    def target(self) -> str:
        """Encoding of the INT8 files: a microcontroller's, else what this machine runs best."""
        return DEVICE_TARGET if self.on_integers else native_target()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        late = {f.name: f.default for f in fields(self) if f.name in LATER}
        return {k: v for k, v in asdict(self).items() if k not in late or v != late[k]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SweepConfig:
        """Rebuild the configuration a sweep has saved.

        Raises:
            InputError: If it has other fields than this version knows.
            RecordError: If a value is of another type.
        """
        odd = sorted((set(values) ^ {f.name for f in fields(cls)}) - LATER)
        if odd:
            raise InputError(f"the sweep was written by another version of qdeploy (it differs in {', '.join(odd)})")
        return decode(cls, dict(values), "settings")
