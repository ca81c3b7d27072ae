"""Files and folders that appear whole or not at all: written under another name beside their own, then renamed.

The other name is ``.<name>.<8 characters>.part``, and whoever writes there holds a lock on it. So what a killed process
has left is told from what another is still writing: the first is removed by the next writer, the second is in use.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from qdeploy.core.errors import InputError

PART = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.part")
"""A name under which something is being written, or was when its writer was killed."""
YOUNG_S = 60.0
"""So long a name is left alone in any case: between its making and its lock lies a moment."""
EXCHANGE = 2
"""``RENAME_EXCHANGE`` of Linux' ``renameat2``."""
HERE = -100
"""``AT_FDCWD``: paths are taken from the working folder."""


@contextmanager
def file_made_whole(path: Path) -> Iterator[BinaryIO]:
    """Yield a stream whose content becomes ``path`` if the block succeeds; if it fails, an earlier file stays.

    A link stays, and what it points to is replaced. A device, pipe or socket is written to as it is. A new file has the
    permissions that the user's umask leaves, one that is replaced those of before.
    """
    if is_special(path):  # asked first: no path leads to what /dev/stdout is a link to
        with path.open("wb") as stream:
            yield stream
        return
    target = Path(os.path.realpath(path))
    part = _part_of(target)
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "wb") as stream:
            _lock(handle)
            yield stream
            stream.flush()
            os.fsync(handle)
            with suppress(FileNotFoundError):
                os.chmod(part, stat.S_IMODE(target.stat().st_mode))
        os.replace(part, target)
        flush_folder(target.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def folder_made_whole(target: Path) -> Iterator[Path]:
    """Yield a folder that becomes ``target`` if the block succeeds and vanishes if it fails.

    Raises:
        InputError: If the folder cannot be made, or another process is making the same one.
    """
    import shutil

    require_writable(target)
    target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    work = _part_of(target)
    work.mkdir()
    handle = os.open(work, os.O_RDONLY) if os.name == "posix" else None  # only there a folder can be opened
    try:
        if handle is not None:
            _lock(handle)
        others = [p for p in _parts_in_use(target) if p != work]
        if others:
            raise InputError(f"another process is writing {target}", fix="wait for it, or give another `out`")
        yield work
        if target.exists():
            _exchange(work, target)
        else:
            os.replace(work, target)
        flush_folder(target.parent)
    finally:
        if handle is not None:
            os.close(handle)
        shutil.rmtree(work, ignore_errors=True)  # what failed, or the folder that was replaced


def open_alone(path: Path) -> int | None:
    """Open a file for reading and writing, emptied, or return None if another process has it open by this function."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        if _lock(handle) is False:
            os.close(handle)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(handle)):  # not renamed between opening and locking
                os.ftruncate(handle, 0)
                return handle
        os.close(handle)


def files_in(folder: Path) -> list[Path]:
    """Return what a folder holds, without what writers that were killed have left."""
    return [path for path in folder.iterdir() if not PART.fullmatch(path.name)]


def flush_folder(folder: Path) -> None:
    """Let a renaming survive a power failure."""
    with suppress(OSError):  # not every file system can
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_special(path: Path) -> bool:
    """Return whether something exists that is neither a regular file nor a folder: a device, a pipe, a socket."""
    return path.exists() and not path.is_file() and not path.is_dir()


def require_new(path: Path, replace: bool) -> None:
    """Check that writing to a path takes no file away that is there.

    Raises:
        InputError: If there is a file, and it may not be replaced.
    """
    if path.is_file() and not replace:
        raise InputError(f"{path} exists", fix="give another name, or `force` to replace it")


def require_writable(folder: Path) -> None:
    """Check that a folder can be created, if need be, and written to, and create nothing.

    Raises:
        InputError: If not.
    """
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise InputError(f"cannot write to {folder}: {nearest} is a file, not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {folder}: no permission in {nearest}", fix="give another folder with `out`")


def require_place(file: Path) -> None:
    """Check that a file can be written: that it is no folder, and its own folder is there and may be written to.

    Raises:
        InputError: If not.
    """
    if is_special(file):
        return
    if file.is_dir():
        raise InputError(f"cannot write {file}: it is a folder", fix="give a file's name")
    require_writable(file.parent)
    if not file.parent.is_dir():
        raise InputError(f"cannot write {file}: there is no folder {file.parent}", fix="make it, or give another path")


def _part_of(target: Path) -> Path:
    """Return a new name to write under, once what killed writers of the same file or folder left is removed."""
    import shutil

    for left in _parts(target):
        if _in_use(left) is False and _age_s(left) > YOUNG_S:
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    return target.with_name(f".{target.name}.{os.urandom(4).hex()}.part")


def _parts(target: Path) -> list[Path]:
    with suppress(OSError), os.scandir(target.parent) as entries:
        found = [entry.name for entry in entries if entry.name.startswith(f".{target.name}.")]
        return [target.parent / n for n in found if (m := PART.fullmatch(n)) and m["name"] == target.name]
    return []


def _age_s(path: Path) -> float:
    with suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime
    return 0.0


def _parts_in_use(target: Path) -> list[Path]:
    return [part for part in _parts(target) if _in_use(part)]


def _in_use(part: Path) -> bool | None:
    """Return whether a process is writing there; None if that cannot be told."""
    try:
        handle = os.open(part, os.O_RDONLY)
    except OSError:
        return None
    try:
        free = _lock(handle)
        return None if free is None else not free
    finally:
        os.close(handle)


def _lock(handle: int) -> bool | None:
    """Lock an open file or folder until it is closed.

    Returns:
        False if another holds the lock; None where the system or file system has no such locks.
    """
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _exchange(work: Path, target: Path) -> None:
    """Let two folders take each other's place: in one step where the system can, so that no kill falls between."""
    if not _exchanged(work, target):
        old = work.with_name(f"{work.name}.old")
        os.replace(target, old)
        try:
            os.replace(work, target)
        except OSError:
            os.replace(old, target)
            raise
        os.replace(old, work)


def _exchanged(first: Path, second: Path) -> bool:
    import ctypes

    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or a C library of before 2018
        return False
    return rename(HERE, os.fsencode(first), HERE, os.fsencode(second), EXCHANGE) == 0
