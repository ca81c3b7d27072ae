"""The state of a sweep and its file ``sweep.json``: settings, plan, and every step that has ended."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from qdeploy.core.errors import InputError
from qdeploy.core.files import newest, read_json, write_json
from qdeploy.core.records import RecordError, decode
from qdeploy.study.results import RESULTS, Exported, Measured, Probed, Result, Trained
from qdeploy.study.settings import SweepConfig

SWEEPS = Path("sweeps")
RECORD = "sweep.json"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model as it is known before anything is trained."""

    name: str
    family: str
    params: int
    macs: int
    input_size: int


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a sweep keeps of the probe of a model."""

    epoch_s: float
    start_s: float
    """Seconds of a run before its first training step and after its last one."""
    images: dict[str, int]

    @classmethod
    def of(cls, found: Probed, wall_s: float) -> Probe:
        """Return what a probe tells that took so long as a whole process."""
        return cls(epoch_s=found.epoch_s, start_s=wall_s - found.stepping_s + found.test_s, images=found.images)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a trial that has ended."""

    kind: str
    """train, export or measure."""
    rung: int
    model: str
    wall_s: float
    error: str | None
    result: Result | None
    """What the step found; None if it failed."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {**asdict(self), "result": _as_it_was(asdict(self.result)) if self.result else {}}

    @classmethod
    def from_dict(cls, values: Any, place: str) -> Step:
        """Return a step from its part of ``sweep.json``.

        Raises:
            RecordError: If a value is missing or of another type.
        """
        kept = decode(_KeptStep, values, place)
        if kept.kind not in RESULTS:
            raise RecordError(f"'{place}.kind' is {kept.kind!r}, expected {', '.join(RESULTS)}")
        result = decode(RESULTS[kept.kind], kept.result, f"{place}.result") if kept.error is None else None
        return cls(**{**vars(kept), "result": result})


def _as_it_was(result: dict[str, Any]) -> dict[str, Any]:
    """Leave out what results of older sweeps do not have."""
    return {
        key: _as_it_was(value) if isinstance(value, dict) else value
        for key, value in result.items()
        if value is not None or key not in ("epoch_s", "precision", "recall", "target")
    }


@dataclass(frozen=True, kw_only=True)
class _KeptStep:
    """A step before its result is read: what that holds depends on the kind."""

    kind: str
    rung: int
    model: str
    wall_s: float
    error: str | None
    result: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A set of models that are trained equally long."""

    epochs: int
    models: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Record:
    """The state of a sweep: all that going on with it needs."""

    folder: Path
    config: SweepConfig
    models: dict[str, Model]
    most_epochs: int
    """Largest number of epochs of any rung."""
    environment: dict[str, Any]
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    probes: dict[str, Probe] = field(default_factory=dict)
    """Probe of each model by its name; empty without a budget."""
    failed: dict[str, str] = field(default_factory=dict)
    """Models whose probe failed, and why."""
    planned: tuple[int, ...] = ()
    """Epochs of each rung, those of later ones as predicted."""
    predicted_s: float | None = None
    """Predicted seconds of the whole sweep, as of its beginning; None without a budget."""
    rungs: tuple[Rung, ...] = ()
    steps: tuple[Step, ...] = ()
    """Steps that have ended, in the order in which they ended."""
    dataset_sha256: str | None = None
    spent_s: float = 0.0
    complete: bool = False

    def find(self, kind: str, rung: int, model: str) -> Step | None:
        """Return a step if it has ended."""
        return next((s for s in self.steps if (s.kind, s.rung, s.model) == (kind, rung, model)), None)

    def longest(self, model: str) -> tuple[Step, Trained] | None:
        """Return a model's longest training that succeeded, and what it found."""
        found = [(s, s.result) for s in self.steps if s.model == model and isinstance(s.result, Trained)]
        return max(found, key=lambda pair: pair[0].rung, default=None)

    def after(self, kind: str, model: str) -> Step | None:
        """Return the export or measurement of a model's longest training, if it has ended."""
        trained = self.longest(model)
        return self.find(kind, trained[0].rung, model) if trained else None

    def exported(self, model: str) -> Exported | None:
        """Return what the export of a model's longest training found."""
        step = self.after("export", model)
        return step.result if step and isinstance(step.result, Exported) else None

    def measured(self, model: str) -> Measured | None:
        """Return what the measurement of a model's longest training found."""
        step = self.after("measure", model)
        return step.result if step and isinstance(step.result, Measured) else None

    def without_failures(self) -> Record:
        """Return the record with all that failed to be tried again; a model whose probe failed joins the first rung."""
        first, *others = self.rungs
        first = replace(first, models=(*first.models, *self.failed))
        steps = tuple(s for s in self.steps if s.error is None)
        return replace(self, steps=steps, rungs=(first, *others), failed={})

    def without_other_targets(self) -> Record:
        """Return the record without exports whose INT8 is, or may be, for another target, and their measurements."""
        exports = [(s, s.result) for s in self.steps if isinstance(s.result, Exported)]
        other = {(s.rung, s.model) for s, made in exports if made.target != self.config.target}
        steps = tuple(s for s in self.steps if s.kind == "train" or (s.rung, s.model) not in other)
        return replace(self, steps=steps)

    def trial_folder(self, model: str) -> Path:
        """Return a model's own folder; its name is safe on every file system, and no other model's."""
        return self.folder / "trials" / folder_names(self.models)[model]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the folder as JSON-ready values, without the table that is made of it."""
        return {
            "schema": SCHEMA,
            "created": self.created,
            "complete": self.complete,
            "settings": self.config.to_dict(),
            "environment": self.environment,
            "plan": {
                "models": {n: asdict(m) for n, m in self.models.items()},
                "most_epochs": self.most_epochs,
                "epochs": list(self.planned),
                "predicted_s": self.predicted_s,
                "probes": {n: asdict(p) for n, p in self.probes.items()},
                "failed": self.failed,
            },
            "rungs": [asdict(r) for r in self.rungs],
            "dataset_sha256": self.dataset_sha256,
            "spent_s": self.spent_s,
            "steps": [s.to_dict() for s in self.steps],
        }

    @classmethod
    def from_dict(cls, folder: Path, values: dict[str, Any]) -> Record:
        """Return the record that ``sweep.json`` holds.

        Raises:
            RecordError: If a value is missing or of another type.
            InputError: If another version wrote the settings.
        """
        file = decode(_File, values)
        plan = file.plan
        return cls(
            folder=folder,
            config=SweepConfig.from_dict(file.settings),
            models=plan.models,
            most_epochs=plan.most_epochs,
            environment=file.environment,
            created=file.created,
            probes=plan.probes,
            failed=plan.failed,
            planned=plan.epochs,
            predicted_s=plan.predicted_s,
            rungs=file.rungs,
            steps=tuple(Step.from_dict(s, f"steps.{i}") for i, s in enumerate(file.steps)),
            dataset_sha256=file.dataset_sha256,
            spent_s=file.spent_s,
            complete=file.complete,
        )

    def save(self, **more: Any) -> None:
        """Write ``sweep.json``, whole or not at all."""
        write_json(self.folder / RECORD, {**self.to_dict(), **more})


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The part of ``sweep.json`` of that name."""

    models: dict[str, Model]
    most_epochs: int
    epochs: tuple[int, ...]
    predicted_s: float | None
    probes: dict[str, Probe]
    failed: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class _File:
    """``sweep.json`` as it is laid out."""

    created: str
    complete: bool
    settings: dict[str, Any]
    environment: dict[str, Any]
    plan: _Plan
    rungs: tuple[Rung, ...]
    dataset_sha256: str | None
    spent_s: float
    steps: tuple[Any, ...]


def folder_names(models: Iterable[str]) -> dict[str, str]:
    """Return a folder name of letters, digits, dots and hyphens for each model."""
    found: dict[str, str] = {}
    for name in models:
        safe = plain = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip(".-") or "model"
        count = 1
        while safe.lower() in {f.lower() for f in found.values()}:
            count += 1
            safe = f"{plain}-{count}"
        found[name] = safe
    return found


def newest_sweep() -> Path:
    """Find the most recent sweep below ``./sweeps``.

    Raises:
        InputError: If there is none.
    """
    found = newest(SWEEPS, f"*/{RECORD}")
    if found is None:
        raise InputError("there is no sweep below ./sweeps; start one with `qdeploy sweep`")
    return found.parent


def load_record(folder: Path) -> Record:
    """Read a sweep's state.

    Raises:
        InputError: If the folder is no sweep, is damaged, or was written by another version.
    """
    if not (folder / RECORD).is_file():
        what = f"is not a sweep: it has no {RECORD}" if folder.is_dir() else "does not exist"
        raise InputError(f"{folder} {what}; give a folder below ./sweeps, or none for the newest")
    values = read_json(folder / RECORD)
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise InputError(f"{folder / RECORD} is damaged or of another version of qdeploy; start a new sweep")
    try:
        return Record.from_dict(folder, values)
    except RecordError as error:
        raise InputError(f"{folder / RECORD} is damaged ({error}); start a new sweep") from error
