"""A run's folder: the place where training leaves its result and export finds it.

runs/<name>/run.json  best-<hash>.safetensors  log.csv  curves.png  checkpoints/  .lock
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qdeploy.core.card import ModelInfo
from qdeploy.core.errors import InputError
from qdeploy.core.files import newest, read_json, sha256_of, write_json
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.records import RecordError, decode
from qdeploy.core.regular import read_regular

RUNS = Path("runs")
RECORD = "run.json"
LOCK = ".lock"
"""Held by the process that trains; gone when the run is complete."""
SCHEMA = 2
MOST_WEIGHTS_BYTES = 1 << 36


@dataclass(frozen=True, kw_only=True)
class RunDataset:
    """The images that a run is trained on."""

    name: str
    sha256: str
    """Hash of all images, labels and splits."""
    source: str
    """A published name or a path."""
    images: dict[str, int]
    """Number of images of each split."""
    problems: int = 0
    """Files that could not be used."""


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """What a run came to, or has come to so far. Accuracies are in percent; ``best_epoch`` counts from 1."""

    epochs: int
    best_epoch: int
    best_weights: str
    """raw, average (EMA) or swa."""
    val_top1: float
    val_top5: float
    test_top1: float | None
    """Accuracy of the saved weights on the test split, in percent, float32; None if the run was interrupted."""
    seconds: float
    """Seconds of training and validation, over all sessions of the run."""
    images_per_s: float
    """Training images per second of all processes, without reading and evaluation."""
    data_share: float
    """Share of the training time spent on gathering and augmenting images; with a GPU, of the host's time alone."""
    peak_memory_bytes: int
    epoch_s: float | None = None
    """Seconds of training an epoch, mean of the last ten, without validation (as the thesis counts, 5.4); None before
    the first epoch has ended and in older records."""
    chance: float | None = None
    """Share of the largest class among the test images, in percent: what answering it always would give."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What ``run.json`` says of a run."""

    created: str
    """When the run began; ISO 8601."""
    config: dict[str, Any]
    """The training's configuration."""
    device: str | None = None
    """Device of the training; None in the earliest records."""
    amp: str
    processes: int
    model: ModelInfo
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    dataset: RunDataset
    git: dict[str, Any] | None
    """``commit`` and ``dirty`` of the folder that the run was started in; None outside a repository."""
    environment: dict[str, Any]
    interrupted: bool
    """Whether there is something to resume."""
    results: RunResults | None = None
    """None before the first weights are saved."""
    weights: str | None = None
    """Name of the weights' file; None as long as there is none."""
    weights_sha256: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; what is not there yet is left out."""
        results = asdict(self.results) if self.results else None
        for name in ("epoch_s", "chance"):
            if results and results[name] is None:
                del results[name]
        late = {"results": results, "weights": self.weights, "weights_sha256": self.weights_sha256}
        return {
            "schema": SCHEMA,
            "created": self.created,
            "config": self.config,
            "device": self.device,
            "amp": self.amp,
            "processes": self.processes,
            "model": self.model.to_dict(),
            "labels": list(self.labels),
            "preprocessing": self.preprocessing.to_dict(),
            "dataset": asdict(self.dataset),
            "git": self.git,
            "environment": self.environment,
            "interrupted": self.interrupted,
            **{name: value for name, value in late.items() if value is not None},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunRecord:
        """Return the record that ``run.json`` holds.

        Raises:
            RecordError: If a value is missing or of another type.
            InputError: If the preprocessing is not that of this version.
        """
        rules = values.get("preprocessing")
        if not isinstance(rules, dict):
            raise RecordError("'preprocessing' is missing or no dict")
        return decode(cls, {**values, "preprocessing": Preprocessing.from_dict(rules)})

    def save(self, folder: Path) -> None:
        """Write ``run.json``, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RECORD, self.to_dict())


def weights_name(digest: str) -> str:
    """Return the name of a weights' file: a new file for new contents, so that a record never meets another's file."""
    return f"best-{digest[:8]}.safetensors"


def newest_run() -> Path:
    """Find the most recent run below ``./runs``.

    Raises:
        InputError: If there is none.
    """
    record = newest(RUNS, f"*/{RECORD}")
    if record is None:
        raise InputError("there is no run below ./runs; train one first with `qdeploy train`")
    return record.parent


def read_record(folder: Path) -> RunRecord:
    """Read a run's record.

    Raises:
        InputError: If the folder is no run or its record is damaged.
    """
    if not (folder / RECORD).is_file():
        what = f"is not a run: it has no {RECORD}" if folder.is_dir() else "does not exist"
        raise InputError(f"{folder} {what}; give a folder below ./runs, or none for the newest")
    values = read_json(folder / RECORD)
    if not isinstance(values, dict):
        raise InputError(f"{folder / RECORD} is damaged: it is no JSON object; train again")
    try:
        return RunRecord.from_dict(values)
    except RecordError as error:
        raise InputError(f"{folder / RECORD} is damaged: {error}; train again") from error
    except InputError as error:
        raise InputError(f"{folder / RECORD} cannot be used: {error}") from error


def read_run(folder: Path) -> tuple[RunRecord, bytes]:
    """Read a run's record and its weights' file, and check that they belong together.

    Raises:
        InputError: If the folder is no run or is damaged.
    """
    record = read_record(folder)
    if record.weights is None:
        raise InputError(f"{folder} has no weights yet", fix="go on with its training by `resume`")
    try:
        weights = read_regular(folder / Path(record.weights).name, MOST_WEIGHTS_BYTES)
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{folder / record.weights} cannot be read: {why}; train again") from error
    if sha256_of(weights) != record.weights_sha256:
        raise InputError(f"{folder} is damaged: {record.weights} is not the file that run.json describes; train again")
    return record, weights
