"""Checkpoints: everything a run needs to go on as if it had never stopped.

checkpoints/<epoch>-<step>.safetensors   every tensor: weights, optimizer, averages, best weights, random states
checkpoints/<epoch>-<step>.json          every number, and the SHA-256 of both

The JSON is written last, so a checkpoint without one was never finished. The last two are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qdeploy.core.errors import InputError
from qdeploy.core.files import read_json, write_json

FOLDER = "checkpoints"
SCHEMA = 2
KEPT = 2


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A moment of a run: before step ``step`` of epoch ``epoch``, both from 0."""

    epoch: int
    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    """JSON-ready values of everything but the tensors."""


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, then remove all but this one and the one before it.

    Raises:
        InputError: If it cannot be written, e.g. on a full disk; the previous ones are intact.
    """
    folder = run / FOLDER
    fallback = "the previous one is intact" if any(folder.glob("*.json")) else "there is none before it"
    stem = f"{checkpoint.epoch:05d}-{checkpoint.step:07d}"
    part = folder / f".{stem}.part"
    try:
        folder.mkdir(exist_ok=True)
        save_file(checkpoint.tensors, part)
        _flush(part)
        record = {"schema": SCHEMA, "epoch": checkpoint.epoch, "step": checkpoint.step, "values": checkpoint.values}
        record = sealed(record, _sha256(part))
        os.replace(part, folder / f"{stem}.safetensors")
        write_json(folder / f"{stem}.json", record)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise InputError(
            f"the checkpoint {folder / stem} could not be written ({error}); {fallback}",
            fix="make room, then continue by `resume`",
        ) from error
    _prune(folder, stem)


def load_checkpoint(run: Path, note: Callable[[str], None]) -> Checkpoint | None:
    """Read the newest whole checkpoint of a run, or None if there is none.

    Args:
        run: The run's folder.
        note: Told of each damaged checkpoint that is passed over.

    Raises:
        InputError: If the newest was written by another version.
    """
    for path in sorted((run / FOLDER).glob("*.json"), reverse=True):
        try:
            record = read_json(path)
            tensors_file = path.with_suffix(".safetensors")
            if record["schema"] != SCHEMA:
                break
            if sealed(record, _sha256(tensors_file))["sha256"] != record["sha256"]:
                raise InputError(f"{path} or {tensors_file.name} is not what it was when it was written")
            return Checkpoint(
                epoch=record["epoch"],
                step=record["step"],
                tensors=load_file(tensors_file),
                values=record["values"],
            )
        except (InputError, OSError, SafetensorError, KeyError, TypeError, AttributeError) as error:
            note(f"checkpoint {path.stem} is damaged and passed over ({error})")
    else:
        return None
    raise InputError(f"{path} was written by another version of qdeploy (format {record['schema']}, known: {SCHEMA})")


def sealed(record: dict[str, Any], tensors_sha256: str) -> dict[str, Any]:
    """Return a checkpoint's record as JSON gives it, with the hash of its numbers and of its tensors' file."""
    plain = json.loads(json.dumps({k: v for k, v in record.items() if k != "sha256"}))
    text = json.dumps(plain, sort_keys=True) + tensors_sha256
    return {**plain, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def remove_checkpoints(run: Path) -> None:
    """Delete a finished run's checkpoints."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)


def nested(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put tensors under a prefix, contiguous and in main memory, as the file format wants them."""
    return {f"{prefix}.{name}": t.detach().cpu().contiguous() for name, t in tensors.items()}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under a prefix, without it."""
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def _prune(folder: Path, newest: str) -> None:
    """Keep the newest and the one before it; what sorts after it is damaged and was passed over."""
    whole = sorted(path.stem for path in folder.glob("*.json") if path.stem <= newest)[-KEPT:]
    for path in folder.iterdir():
        if path.stem not in whole:
            path.unlink()


def _flush(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
