"""The cache of decoded images: written once, then opened as a memory map in milliseconds.

``<cache>/decoded/<name>-<16 digits>/`` belongs to one data set at one place and one preprocessing. It appears whole
or not at all (``core.files.folder_made_whole``); only one process builds it at a time. It is used as long as its
fingerprint is that of the data: path, size and times of change of the files, not their contents, so that a start does
not read the data set. After a change it is built again, and images whose file is the same are copied from the old one.
An image that could not be read for a reason of the moment is tried again at every start: the cache holds what is known
of the data, and not what the system refused once.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from qdeploy.core.errors import DataError, one_line
from qdeploy.core.files import locked, read_json, write_json
from qdeploy.core.image_formats import FORMATS
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.progress import Progress
from qdeploy.core.whole import folder_made_whole
from qdeploy.data.dataset import Dataset, Rows
from qdeploy.data.places import cache_folder
from qdeploy.data.reading import read_rows, shape_of
from qdeploy.data.source import Place, Source, identity

SCHEMA = 3
"""Raised when a reader, the splits or the files here change: older folders are then built again."""
PIXELS = "pixels.npy"
COLUMNS = ("labels", "hashes", "keys")


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """What a cache folder holds."""

    rows: Rows
    fingerprint: str
    decoder: str


def load_cached(place: Place, preprocessing: Preprocessing, seed: int, progress: Progress | None = None) -> Dataset:
    """Open a data set's decoded images, or decode and keep them.

    A folder that is damaged is built again; where it cannot be written the images stay in memory: both are told in
    ``Dataset.notes``.

    Raises:
        DataError: If the data set cannot be used.
    """
    read = functools.cache(place.read)
    fingerprint = _fingerprint(place, None if place.files else read(), seed)
    target = folder_of(place, preprocessing)
    kept, notes = _try_open(target, preprocessing)
    if kept and _is_current(kept, fingerprint, read):
        return kept.rows.dataset(cache=target)
    source = read()
    rows: Rows | None = None
    try:
        with _workshop(target):
            kept, _ = _try_open(target, preprocessing)  # another process may have built it while this one waited
            if kept and _is_current(kept, fingerprint, read):
                return kept.rows.dataset(tuple(notes), cache=target)
            known = kept.rows if kept and kept.decoder == _decoder() else None
            with folder_made_whole(target) as folder:
                pixels = _reserve(folder / PIXELS, shape_of(source, preprocessing))
                rows = read_rows(source, preprocessing, seed, pixels, known=known, progress=progress)
                _save(folder, rows, fingerprint)
            return _open(target, preprocessing).rows.dataset(tuple(notes), cache=target)
    except OSError as error:
        notes.append(
            f"decoded images are not kept, so the next start decodes again: {target.parent} cannot be written "
            f"({error.strerror or error}); set QDEPLOY_CACHE to a folder with room"
        )
    if rows is None:
        rows = read_rows(
            source, preprocessing, seed, np.empty(shape_of(source, preprocessing), np.uint8), progress=progress
        )
    return rows.dataset(tuple(notes))


def _is_current(kept: _Kept, fingerprint: str, read: Callable[[], Source]) -> bool:
    """Return whether a folder holds what decoding would give now: also of what could not be read nothing can."""
    if kept.fingerprint != fingerprint:
        return False
    names = set(kept.rows.passing)
    again = (r for part in read().records.values() for r in part if str(r.source) in names) if names else ()
    return not any(r.is_readable() for r in again)


def folder_of(place: Place, preprocessing: Preprocessing) -> Path:
    """Return the folder for a data set at its place under one preprocessing."""
    text = f"{place.name}\n{place.path}\n{preprocessing.to_dict()['sha256']}"
    if preprocessing.formats != FORMATS:
        text += f"\n{sorted(preprocessing.formats)}"
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", place.name).strip(".-")[:40] or "data"
    return cache_folder().absolute() / "decoded" / f"{slug}-{_digest(text)[:16]}"


def _decoder() -> str:
    """Another Pillow may decode and resize differently: its pixels are not mixed with this one's."""
    return f"pillow {PIL.__version__}"


def _fingerprint(place: Place, source: Source | None, seed: int) -> str:
    """Hash what decides the contents: the files' identities, classes, splits and the rules."""
    lines = [f"{SCHEMA} {_decoder()} {seed} {source.holdout if source else place.holdout}"]
    lines += [identity(file) for file in place.files]
    if source:
        lines += [*source.classes, *source.problems]
        lines += [f"{split} {r.label} {r.key}" for split, records in source.records.items() for r in records]
    return _digest("\n".join(lines))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


@contextmanager
def _workshop(target: Path) -> Iterator[None]:
    """Keep other builders of this folder out and remove what killed ones left.

    Raises:
        OSError: If the cache cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target.parent))
    with locked(target.parent / f".{target.name}.lock", wait=True):
        for left in target.parent.glob(f".{target.name}.*.part"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _reserve(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Make the file of pixels with its whole room: on a full disk a write into a map would kill the process.

    Raises:
        OSError: If the disk has not enough room.
    """
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with path.open("r+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
        elif shutil.disk_usage(path.parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return np.asarray(pixels)


def _save(folder: Path, rows: Rows, fingerprint: str) -> None:
    """Write everything but the pixels, which are in their file, and wait until all of it is on the disk."""
    for name in COLUMNS:
        np.save(folder / f"{name}.npy", getattr(rows, name), allow_pickle=False)
    sizes = {}
    for name in (PIXELS, *(f"{c}.npy" for c in COLUMNS)):
        with (folder / name).open("r+b") as stream:
            os.fsync(stream.fileno())
            sizes[name] = stream.seek(0, os.SEEK_END)
    meta = {
        "schema": SCHEMA,
        "name": rows.name,
        "classes": rows.classes,
        "problems": rows.problems,
        "counts": rows.counts,
        "passing": rows.passing,
        "sha256": rows.dataset().sha256,
        "preprocessing": rows.preprocessing.to_dict(),
        "decoder": _decoder(),
        "fingerprint": fingerprint,
        "sizes": sizes,
        "columns_sha256": _columns_sha256(rows),
    }
    write_json(folder / "meta.json", meta)


def _columns_sha256(rows: Rows) -> str:
    digest = hashlib.sha256()
    for name in COLUMNS:
        digest.update(np.ascontiguousarray(getattr(rows, name)).tobytes())
    return digest.hexdigest()


def _try_open(folder: Path, preprocessing: Preprocessing) -> tuple[_Kept | None, list[str]]:
    """Open a folder if it is there and of this version; a damaged one gives a note instead."""
    if not folder.exists():
        return None, []
    try:
        return _open(folder, preprocessing), []
    except _OlderError:
        return None, []
    except Exception as error:  # a damaged header makes numpy's reader raise whatever Python's own parser does
        return None, [f"the decoded images in {folder} were damaged ({one_line(error)}) and are made again"]


class _OlderError(Exception):
    """A folder of another version of qdeploy."""


def _open(folder: Path, preprocessing: Preprocessing) -> _Kept:
    """Open a folder and check all of it but the pixels' values.

    Raises:
        _OlderError: If another version made it.
        DataError: If it is damaged; also OSError, ValueError, LookupError, TypeError, AttributeError.
    """
    meta: dict[str, Any] = read_json(folder / "meta.json")
    if meta["schema"] != SCHEMA:
        raise _OlderError
    for name, size in meta["sizes"].items():
        if (folder / name).stat().st_size != size:
            raise DataError(f"{name} has {(folder / name).stat().st_size} bytes, expected {size}")
    columns = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in COLUMNS}
    rows = Rows(
        name=meta["name"],
        classes=tuple(meta["classes"]),
        preprocessing=preprocessing,
        problems=tuple(meta["problems"]),
        pixels=np.asarray(np.load(folder / PIXELS, mmap_mode="c", allow_pickle=False)),
        counts=tuple(meta["counts"]),
        passing=tuple(meta["passing"]),
        **columns,
    )
    if _columns_sha256(rows) != meta["columns_sha256"]:
        raise DataError("labels, hashes and keys have another checksum")
    if rows.pixels.shape[1:] != (preprocessing.size, preprocessing.size, 3) or sum(rows.counts) > len(rows.pixels):
        raise DataError(f"the pixels have the shape {rows.pixels.shape}")
    return _Kept(rows=rows, fingerprint=meta["fingerprint"], decoder=meta["decoder"])
