"""What a sweep knows, and its file ``sweep.json``: settings, plan, and every trial that has ended."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from qdeploy.core.errors import InputError
from qdeploy.core.files import newest, read_json, write_json
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
class Done:
    """One trial that has ended."""

    kind: str
    """train, export or measure."""
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


@dataclass
class Record:
    """The state of a sweep: all that going on with it needs."""

    folder: Path
    config: SweepConfig
    models: dict[str, Model]
    most_epochs: int
    """Of any rung."""
    environment: dict[str, Any]
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    probes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the probe of each model found; empty without a budget."""
    failed: dict[str, str] = field(default_factory=dict)
    """Models whose probe failed, and why."""
    planned: tuple[int, ...] = ()
    """Epochs of each rung, those of later ones as predicted."""
    predicted_s: float | None = None
    """For the whole sweep, when it began."""
    rungs: list[Rung] = field(default_factory=list)
    trials: list[Done] = field(default_factory=list)
    dataset_sha256: str | None = None
    spent_s: float = 0.0
    complete: bool = False

    def find(self, kind: str, rung: int, model: str) -> Done | None:
        """Give a trial if it has ended."""
        return next((t for t in self.trials if (t.kind, t.rung, t.model) == (kind, rung, model)), None)

    def longest(self, model: str) -> Done | None:
        """Give a model's longest training that succeeded."""
        found = [t for t in self.trials if t.kind == "train" and t.model == model and t.error is None]
        return max(found, key=lambda t: t.rung, default=None)

    def after(self, kind: str, model: str) -> Done | None:
        """Give the export or measurement of a model's longest training, if it has ended."""
        trained = self.longest(model)
        return self.find(kind, trained.rung, model) if trained else None

    def forget_failures(self) -> None:
        """Let everything that failed be tried again; a model whose probe failed joins the first rung."""
        self.trials = [t for t in self.trials if t.error is None]
        first = self.rungs[0]
        self.rungs[0] = replace(first, models=(*first.models, *self.failed))
        self.failed = {}

    def trial_folder(self, model: str) -> Path:
        """Give a model's own folder; its name is safe on every file system, and no other model's."""
        return self.folder / "trials" / folder_names(self.models)[model]

    def document(self) -> dict[str, Any]:
        """Give everything as JSON-ready values, without the table that is made of it."""
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
                "probes": self.probes,
                "failed": self.failed,
            },
            "rungs": [{"epochs": r.epochs, "models": list(r.models)} for r in self.rungs],
            "dataset_sha256": self.dataset_sha256,
            "spent_s": self.spent_s,
            "steps": [asdict(t) for t in self.trials],
        }

    def save(self, **more: Any) -> None:
        """Write ``sweep.json``, whole or not at all."""
        write_json(self.folder / RECORD, {**self.document(), **more})


def folder_names(models: Iterable[str]) -> dict[str, str]:
    """Give each model a folder name of letters, digits, dots and hyphens."""
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
        return _record_from(folder, values)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / RECORD} is damaged ({error}); start a new sweep") from error


def _record_from(folder: Path, values: dict[str, Any]) -> Record:
    plan = values["plan"]
    return Record(
        folder=folder,
        config=SweepConfig.from_dict(values["settings"]),
        models={n: Model(**m) for n, m in plan["models"].items()},
        most_epochs=plan["most_epochs"],
        environment=values["environment"],
        created=values["created"],
        probes=plan["probes"],
        failed=plan["failed"],
        planned=tuple(plan["epochs"]),
        predicted_s=plan["predicted_s"],
        rungs=[Rung(epochs=r["epochs"], models=tuple(r["models"])) for r in values["rungs"]],
        trials=[Done(**t) for t in values["steps"]],
        dataset_sha256=values["dataset_sha256"],
        spent_s=values["spent_s"],
        complete=values["complete"],
    )
