"""The files of a run besides its checkpoints: record, weights, log and curves."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors

from qdeploy.core.card import ModelInfo
from qdeploy.core.errors import InputError
from qdeploy.core.files import dated_folder, sha256_of, write_bytes
from qdeploy.core.git import git_commit
from qdeploy.core.machine import environment
from qdeploy.core.run_folder import LOCK, RECORD, RUNS, RunDataset, RunRecord, RunResults, weights_name
from qdeploy.core.whole import files_in, require_writable
from qdeploy.data.catalog import location_of
from qdeploy.data.dataset import Dataset
from qdeploy.models.registry import model_config, summarise
from qdeploy.training.averaging import Weights
from qdeploy.training.device import Precision
from qdeploy.training.recipes import TrainConfig


@dataclass(frozen=True, kw_only=True)
class TrainResult(RunResults):
    """What a run came to, and which run of which model."""

    run: str
    model: str
    params: int


def free_folder(config: TrainConfig, out: Path | None) -> Path:
    """Choose a new run's folder; nothing is created.

    Raises:
        InputError: If the given one is not empty or cannot be written.
    """
    if out is None:
        out = dated_folder(RUNS, f"{re.sub('[/:]', '-', config.model)}-{Path(location_of(config.data)).name}")
    if out.is_dir() and any(path.name != LOCK for path in files_in(out)):
        raise InputError(
            f"{out} already holds {'a run' if (out / RECORD).exists() else 'files'}", fix="give another `out`"
        )
    require_writable(out)
    return out


def describe(config: TrainConfig, dataset: Dataset, precision: Precision, processes: int) -> RunRecord:
    """Return a new run's record."""
    classes = len(dataset.classes)
    summary = summarise(config.model, classes, config.input_size, config.model_changes)
    shape = model_config(config.model, classes, config.input_size, config.model_changes)
    return RunRecord(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        config=config.to_dict(),
        device=precision.device.type,
        amp=precision.amp,
        processes=processes,
        model=ModelInfo(**asdict(summary), config=shape.to_dict()),
        labels=tuple(dataset.classes),
        preprocessing=dataset.preprocessing,
        dataset=RunDataset(
            name=dataset.name,
            sha256=dataset.sha256,
            source=location_of(config.data),
            images={name: len(split) for name, split in dataset.splits.items()},
            problems=len(dataset.problems),
        ),
        git=git_commit(),
        environment=environment("qdeploy", "torch", "numpy", "pillow"),
        interrupted=True,
    )


def remove_if_empty(folder: Path) -> None:
    """Remove the folder of a run that failed before there was anything to keep.

    It stays if anything but the record is in it, or it cannot be removed: the run's own error is the one to report.
    """
    own = {RECORD, LOCK}
    with suppress(OSError):
        if {path.name for path in folder.iterdir()} <= own:
            for name in own:
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()


def save_weights(folder: Path, record: RunRecord, weights: Weights) -> RunRecord:
    """Write the weights under a name of their own, then the record that names them, then remove the old ones.

    Whenever this is cut off, the record in the folder names a file that is whole.

    Returns:
        That record.
    """
    data = save_tensors(weights)
    digest = sha256_of(data)
    name = weights_name(digest)
    if not (folder / name).exists():
        write_bytes(folder / name, data)
    record = replace(record, weights=name, weights_sha256=digest)
    record.save(folder)
    for old in folder.glob(weights_name("*")):
        if old.name != name:
            old.unlink()
    return record


def write_log(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the epochs so far as ``log.csv``; the first may be of an earlier version, with fewer columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_bytes(folder / "log.csv", text.getvalue().encode())


def read_log(folder: Path, epochs: int) -> list[dict[str, Any]]:
    """Read the rows of ``log.csv``.

    Raises:
        InputError: If they are not those of so many epochs.
    """
    try:
        rows = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))[:epochs]
        found = [{name: _number(text) for name, text in row.items()} for row in rows]
        if [row["epoch"] for row in found] != list(range(1, epochs + 1)):
            raise ValueError(f"it has not the rows of {epochs} epochs")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / 'log.csv'} is needed to give the run more epochs, and is damaged: {error}"
        ) from error
    return found


def _number(text: str) -> float | int | str | None:
    """Return a cell of the log as it was before it was written."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None
