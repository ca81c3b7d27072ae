"""A run's folder: the place where training leaves its result and export finds it.

runs/<name>/run.json  best-<hash>.safetensors  log.csv  curves.png  checkpoints/  .lock
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdeploy.core.errors import InputError
from qdeploy.core.files import newest, read_json, sha256_of

RUNS = Path("runs")
RECORD = "run.json"
LOCK = ".lock"
"""Held by the process that trains; gone when the run is complete."""
_FIELDS: dict[str, type] = {
    "created": str,
    "config": dict,
    "model": dict,
    "model.name": str,
    "model.params": int,
    "model.macs": int,
    "model.config": dict,
    "labels": list,
    "preprocessing": dict,
    "dataset": dict,
    "dataset.name": str,
    "dataset.sha256": str,
    "dataset.source": str,
    "dataset.images": dict,
}
"""What export reads from a record."""


def weights_name(digest: str) -> str:
    """Give the name of a weights' file: a new file for new contents, so that a record never meets another's file."""
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


def read_run(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Read a run's record and its weights' file, and check that they belong together.

    Raises:
        InputError: If the folder is no run or is damaged.
    """
    if not (folder / RECORD).is_file():
        what = "is not a run: it has no run.json" if folder.is_dir() else "does not exist"
        raise InputError(f"{folder} {what}; give a folder below ./runs, or none for the newest")
    record = read_json(folder / RECORD)
    if not isinstance(record, dict):
        raise InputError(f"{folder / RECORD} is damaged: it is no JSON object; train again")
    name = record.get("weights")
    if not isinstance(name, str):
        raise InputError(f"{folder} has no weights yet", fix="go on with its training by `resume`")
    try:
        weights = (folder / Path(name).name).read_bytes()
    except OSError as error:
        raise InputError(f"{folder / name} cannot be read: {error.strerror}; train again") from error
    if sha256_of(weights) != record.get("weights_sha256"):
        raise InputError(f"{folder} is damaged: {name} is not the file that run.json describes; train again")
    require_fields(folder, record, _FIELDS)
    return record, weights


def require_fields(folder: Path, record: Any, kinds: dict[str, type]) -> None:
    """Check that a run's record has what is read from it.

    Args:
        folder: The run's.
        record: What ``run.json`` holds.
        kinds: The type of each field, by its path with dots.

    Raises:
        InputError: If a field is missing or of another type.
    """
    for path, kind in kinds.items():
        value = record
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, kind):
            raise InputError(f"{folder / RECORD} is damaged: '{path}' is missing or no {kind.__name__}; train again")
