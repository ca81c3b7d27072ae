"""The checksums of a kit's files, in the form that ``sha256sum -c`` reads."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from qdeploy.core.files import sha256_of
from qdeploy.core.regular import read_regular

SUMS = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
MOST_SUMS_BYTES = 1 << 20
MOST_FILE_BYTES = 1 << 31


def read_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that a kit lists, by its path below the folder.

    Raises:
        OSError: If there is no list, or it cannot be read.
        ValueError: If it is not one, or names a file outside the folder.
    """
    sums: dict[str, str] = {}
    for line in read_regular(folder / SUMS, MOST_SUMS_BYTES).decode().splitlines():
        found = LINE.fullmatch(line)
        if found is None:
            raise ValueError("a line is not a checksum and a name")
        digest, name = found.groups()
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"it names {name}, which is outside the folder")
        if name in sums:
            raise ValueError(f"it names {name} twice")
        sums[name] = digest
    if not sums:
        raise ValueError("it lists no file")
    return sums


def changed_files(folder: Path, sums: dict[str, str]) -> list[str]:
    """Return those listed files, by their path below the folder, that are missing or have another content."""
    return [name for name, digest in sums.items() if _digest(folder / name) != digest]


def _digest(file: Path) -> str | None:
    try:
        return sha256_of(read_regular(file, MOST_FILE_BYTES))
    except (OSError, ValueError):
        return None
