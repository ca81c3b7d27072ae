"""``device.json``: what ``qdeploy tune`` found best for one machine, kept beside the artifact it measured.

It holds for that machine and for that file only; elsewhere it is passed over, and whoever opens the model is told.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qdeploy.core.errors import InputError
from qdeploy.core.files import read_json, sha256_of
from qdeploy.core.machine import SPEED_FLAGS, cpu_flags, cpu_name, usable_cores

DEVICE_FILE = "device.json"
DEVICE_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How to open a model here."""

    path: Path
    engine: str = "ort"
    threads: int | None = None
    batch: int | None = None
    note: str | None = None
    """What the user should know of ``device.json``, e.g. that it was used; None where there is none."""


def this_machine() -> dict[str, Any]:
    """Return what decides whether a measurement holds here: the CPU's name, its flags, and the usable cores."""
    return {"cpu": cpu_name(), "flags": [f for f in SPEED_FLAGS if f in cpu_flags()], "cores": usable_cores()}


def setup_for(path: Path, named: bool, engine: str | None = None, threads: int | None = None) -> Setup:
    """Choose file, engine and threads: what is given, else what was tuned for this machine, else the defaults.

    Args:
        path: The model file to use without ``device.json``.
        named: Whether the user named this very file; else the tuned one beside it is taken.
        engine: The user's engine; another than the tuned one leaves ``device.json`` out of it.
        threads: The user's threads.

    Raises:
        InputError: If ``device.json`` is damaged.
    """
    plain = Setup(path=path, engine=engine or "ort", threads=threads)
    file = path.parent / DEVICE_FILE
    if not file.is_file():
        return plain
    device = read_device(file)
    tuned = path.parent / device["file"]
    if named and path.name != tuned.name:
        return plain
    unfit = _unfit(device, tuned)
    if unfit:
        return replace(plain, note=f"{file} is not used: {unfit}; run `qdeploy tune` again")
    if engine not in (None, device["engine"]):
        return replace(plain, note=f"{file} is not used: it is for `engine={device['engine']}`")
    threads = threads or device["threads"]
    says = f"as tuned in {file}: {device['file']} with {device['engine']}, {threads} thread{'s' * (threads > 1)}"
    return Setup(path=tuned, engine=device["engine"], threads=threads, batch=device["batch"], note=says)


def read_device(file: Path) -> dict[str, Any]:
    """Read and check a ``device.json``.

    Raises:
        InputError: If it is damaged or of another schema.
    """
    device = read_json(file)
    kinds = {"file": str, "sha256": str, "engine": str, "threads": int, "batch": int, "machine": dict}
    sound = isinstance(device, dict) and device.get("schema") == DEVICE_SCHEMA
    if not sound or not all(isinstance(device.get(k), kind) for k, kind in kinds.items()):
        raise InputError(
            f"{file} is damaged or of another version of qdeploy", fix="remove it, or run `qdeploy tune` again"
        )
    if Path(device["file"]).name != device["file"] or device["threads"] < 1 or device["batch"] < 1:
        raise InputError(f"{file} is damaged: its file, threads or batch cannot be", fix="remove it")
    return device


def _unfit(device: dict[str, Any], tuned: Path) -> str | None:
    """Return why a tuned choice does not hold here, or None."""
    here = this_machine()
    for key, what in (("cpu", "CPU"), ("flags", "CPU flags"), ("cores", "number of cores")):
        if device["machine"].get(key) != here[key]:
            return f"it was measured on another machine ({what}: {device['machine'].get(key)}, here {here[key]})"
    if not tuned.is_file():
        return f"{tuned.name} is gone"
    if sha256_of(tuned.read_bytes()) != device["sha256"]:
        return f"{tuned.name} has changed since"
    return None
