"""Files written whole, JSON files, locks between processes, and folders named by date."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from qdeploy.core.errors import InputError
from qdeploy.core.json_text import parse_json
from qdeploy.core.progress import Note
from qdeploy.core.regular import TooLargeError, read_regular
from qdeploy.core.whole import file_made_whole

MOST_JSON_BYTES = 1 << 28


def sha256_of(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    with file_made_whole(path) as stream:
        stream.write(data)


def write_rendered(path: Path, render: Callable[[], bytes], note: Note) -> bytes | None:
    """Make a picture or a page of results that are written already: where that fails, the reason is only a note.

    Returns:
        What was written, or None.
    """
    try:
        data = render()
        write_bytes(path, data)
    except Exception as error:  # whatever a drawing library raises, or a full disk
        reason = error.strerror if isinstance(error, OSError) else None
        first = str(error).strip().partition("\n")[0]
        note(f"{path.name} could not be made ({reason or f'{type(error).__name__}: {first}'}); the results are written")
        return None
    return data


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON document.

    Raises:
        InputError: If the file is missing or damaged.
    """
    try:
        return parse_json(read_regular(path, MOST_JSON_BYTES).decode(), finite=False)
    except TooLargeError as error:
        raise InputError(f"{path} {error}, more than any JSON file of qdeploy") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); it is damaged or not written by qdeploy") from error


class BusyError(OSError):
    """Another process holds a lock."""


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Keep other processes out while the block runs; the system lets go of the lock if this process is killed.

    Args:
        path: A file for the lock alone, in a folder that exists. It may stay: by itself it keeps nobody out.
        wait: Whether to wait for another holder.

    Raises:
        BusyError: If another process holds the lock and ``wait`` is false.
        OSError: If the file cannot be made.
    """
    from filelock import FileLock, Timeout  # costs 20 ms, which a prediction does not have

    lock = FileLock(path)
    try:
        lock.acquire(blocking=wait)
    except Timeout as error:
        raise BusyError(f"another process holds {path}") from error
    try:
        yield
    finally:
        lock.release()


def dated_folder(parent: Path, name: str) -> Path:
    """Choose a folder ``<name>-<time>`` that does not exist yet; nothing is created."""
    dated = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    names = (dated if i == 1 else f"{dated}-{i}" for i in itertools.count(1))
    return next(parent / n for n in names if not (parent / n).exists())


def newest(folder: Path, pattern: str) -> Path | None:
    """Find the most recently written match of a pattern, or None."""
    found = [p for p in folder.glob(pattern) if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    return max(found, key=lambda p: (p.stat().st_mtime_ns, str(p)), default=None)
