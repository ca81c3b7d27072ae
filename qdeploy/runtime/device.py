"""``device.json``: what ``qdeploy tune`` found best for one machine, kept beside the artifact it measured.

It holds for that machine and for that file only; elsewhere it is passed over, and whoever opens the model is told.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
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
    asked: bool = True
    """Whether the engine is the user's choice or the default, and not that of a file beside the model."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What decides whether a measurement holds on a machine."""

    cpu: str
    flags: tuple[str, ...]
    """Instructions of the CPU that matter to speed."""
    cores: int
    """Cores that this process may use."""


def this_machine() -> Machine:
    """Return this machine."""
    return Machine(cpu=cpu_name(), flags=tuple(f for f in SPEED_FLAGS if f in cpu_flags()), cores=usable_cores())


@dataclass(frozen=True, kw_only=True)
class DeviceRecord:
    """What ``device.json`` holds."""

    file: str
    """Name of the chosen model file, in the same folder."""
    sha256: str
    engine: str
    threads: int
    batch: int
    machine: Machine
    reason: str = ""
    """Why this choice, in words."""
    limits: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    """The choice's figures."""
    versions: dict[str, str] = field(default_factory=dict)
    date: str = ""
    """ISO 8601."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document."""
        return {"schema": DEVICE_SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> DeviceRecord:
        """Rebuild from ``to_dict``.

        Raises:
            ValueError: If the schema is another one, or a field is missing or cannot be.
        """
        kinds = {"file": str, "sha256": str, "engine": str, "threads": int, "batch": int, "machine": dict}
        if fields.get("schema") != DEVICE_SCHEMA or not all(isinstance(fields.get(k), t) for k, t in kinds.items()):
            raise ValueError("of another schema, or a field is missing")
        machine = fields["machine"]
        flags = tuple(machine.get("flags") or ())
        more = {k: fields[k] for k in ("reason", "limits", "measured", "versions", "date") if k in fields}
        record = cls(
            **{k: fields[k] for k in ("file", "sha256", "engine", "threads", "batch")},
            machine=Machine(cpu=str(machine.get("cpu")), flags=flags, cores=int(machine.get("cores") or 0)),
            **more,
        )
        if Path(record.file).name != record.file or record.threads < 1 or record.batch < 1:
            raise ValueError("its file, threads or batch cannot be")
        return record


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
    tuned = path.parent / device.file
    if named and path.name != tuned.name:
        return plain
    unfit = _unfit(device, tuned)
    if unfit:
        return replace(plain, note=f"{file} is not used: {unfit}; run `qdeploy tune` again")
    if engine not in (None, device.engine):
        return replace(plain, note=f"{file} is not used: it is for `engine={device.engine}`")
    threads = threads or device.threads
    says = f"as tuned in {file}: {device.file} with {device.engine}, {threads} thread{'s' * (threads > 1)}"
    asked = engine is not None
    return Setup(path=tuned, engine=device.engine, threads=threads, batch=device.batch, note=says, asked=asked)


def read_device(file: Path) -> DeviceRecord:
    """Read and check a ``device.json``.

    Raises:
        InputError: If it is damaged or of another schema.
    """
    fields = read_json(file)
    try:
        return DeviceRecord.from_dict(fields if isinstance(fields, dict) else {})
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file} is damaged or of another version of qdeploy ({error})",
            fix="remove it, or run `qdeploy tune` again",
        ) from error


def _unfit(device: DeviceRecord, tuned: Path) -> str | None:
    """Return why a tuned choice does not hold, or None."""
    here, there = this_machine(), device.machine
    for name, what in (("cpu", "CPU"), ("flags", "CPU flags"), ("cores", "number of cores")):
        found, own = getattr(there, name), getattr(here, name)
        if found != own:
            return f"it was measured on another machine ({what}: {found}, here {own})"
    if not tuned.is_file():
        return f"{tuned.name} is gone"
    if sha256_of(tuned.read_bytes()) != device.sha256:
        return f"{tuned.name} has changed since"
    return None
