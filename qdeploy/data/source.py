"""Types of a data set before its images are decoded: records, sources, places, readers."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import PASSING, ImageError
from qdeploy.core.image import image_bytes
from qdeploy.core.image_formats import MAX_FILE_BYTES
from qdeploy.core.progress import Progress


@dataclass(frozen=True)
class ZipMember:
    """One file inside a zip archive, read when it is needed; nothing is unpacked."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def read(self) -> bytes:
        """Read the file.

        Raises:
            ImageError: If it is too large or the archive is damaged at this place.
        """
        if self.info.file_size > MAX_FILE_BYTES:
            raise ImageError(
                f"has {self.info.file_size / 2**20:.0f} MiB; the limit is {MAX_FILE_BYTES // 2**20} MiB", "too-large"
            )
        try:
            return self.archive.read(self.info)
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            raise ImageError(f"cannot be read from the archive: {error}", "unreadable") from error

    def __str__(self) -> str:
        return f"{self.archive.filename}/{self.info.filename}"


@dataclass(frozen=True)
class Record:
    """One labelled image that has not been decoded yet: a file, a zip's member, or pixels already in memory."""

    source: Path | ZipMember | NDArray[np.uint8]
    label: int

    def image(self) -> Path | bytes | NDArray[np.uint8]:
        """Return what ``Preprocessing`` opens.

        Raises:
            ImageError: If it cannot be read from its archive.
        """
        return self.source.read() if isinstance(self.source, ZipMember) else self.source

    def is_readable(self) -> bool:
        """Return whether the system gives its bytes now, whatever they are."""
        try:
            image = self.image()
            if isinstance(image, Path):
                image_bytes(image)
        except ImageError as error:
            return error.reason not in PASSING
        return True

    @property
    def key(self) -> str:
        """32 hexadecimal digits that change when the file does, or nothing for pixels in memory.

        A file is known by its path, size, and times of change of its content and of its state: its content is not
        read, so that 100,000 files are checked in a second. A zip's member is known by its name, size and CRC.
        """
        if isinstance(self.source, np.ndarray):
            return ""
        if isinstance(self.source, ZipMember):
            what = f"{self.source.info.filename} {self.source.info.file_size} {self.source.info.CRC}"
        else:
            what = identity(self.source)
        return hashlib.sha256(what.encode(errors="surrogateescape")).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class Source:
    """The images of a data set. ``records`` has a key for every split the source itself defines."""

    name: str
    classes: tuple[str, ...]
    records: dict[str, list[Record]]
    problems: list[str] = field(default_factory=list)
    holdout: float = 0.15
    """Share of each class's training images that becomes each split the source does not define."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A data set that was found: cheap to make, so that a set in the cache is not listed or unpacked again."""

    name: str
    path: Path
    """Absolute path of the folder or archive."""
    read: Callable[[], Source]
    files: tuple[Path, ...] = ()
    """The few files that hold the data set; empty if every image is a file."""
    holdout: float = 0.0
    """``Source.holdout`` of the data set, known before it is read; used where ``files`` is given."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One data set known by name."""

    find: Callable[[Progress | None], Place]
    """Finds the data set on this machine, else downloads it; reports progress in bytes."""
    recognise: Callable[[Path], Place | None]
    """Tells whether a folder or file is this data set."""
    classes: int
    """Number of classes of the published data set."""
    images: dict[str, int]
    """Images of each split of the published data set, after images were held out for validation."""


def identity(path: Path) -> str:
    """Return a file's absolute path, size, and times of change as a text.

    The second time, of its state (ctime), changes with every writing and nobody can set it: a file is another one after
    its content was replaced at the same size and time, and after its permissions were changed.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        return f"{path} {error.strerror}"
    return f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
