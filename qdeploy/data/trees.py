"""One view of a published folder, whether it was unpacked or is still inside its zip."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Protocol

from qdeploy.core.errors import DataError, ImageError
from qdeploy.data.source import ZipMember


class Tree(Protocol):
    """A folder with text files and images; paths below it are written with ``/``."""

    def text(self, path: str) -> str | None:
        """Return a text file's contents, or None if there is no such file."""

    def files(self, folder: str) -> list[str]:
        """Return the sorted names of the files in a folder; none if there is no such folder."""

    def folders(self, folder: str) -> list[str]:
        """Return the sorted names of the folders in a folder."""

    def image(self, path: str) -> Path | ZipMember:
        """Return the source of an image that ``files`` has listed."""


class FolderTree:
    """An unpacked folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def text(self, path: str) -> str | None:  # noqa: D102  the protocol's
        file = self.root / path
        try:
            return file.read_text(encoding="utf-8") if file.is_file() else None
        except (OSError, ValueError) as error:
            raise DataError(f"{file} cannot be read ({error}); unpack the published archive again") from error

    def files(self, folder: str) -> list[str]:  # noqa: D102  whatever is no folder: it is refused when it is read
        return sorted(name for name, is_folder in self._entries(folder) if not is_folder)

    def folders(self, folder: str) -> list[str]:  # noqa: D102
        return sorted(name for name, is_folder in self._entries(folder) if is_folder)

    def _entries(self, folder: str) -> list[tuple[str, bool]]:
        """Return what a folder holds, each with whether it is a folder; nothing of one that is not there."""
        root = self.root / folder
        try:
            with os.scandir(root) as entries:
                return [(e.name, os.path.isdir(e.path)) for e in entries]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise DataError(f"{root} cannot be read: {error.strerror or error}") from error

    def image(self, path: str) -> Path:  # noqa: D102
        return self.root / path

    def __str__(self) -> str:
        return str(self.root)


class ZipTree:
    """The folder inside a zip archive that holds a marker file.

    Raises:
        DataError: If the file is no zip archive, is damaged, or has no such folder.
    """

    def __init__(self, path: Path, marker: str) -> None:
        self.path = path
        try:
            self.archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise DataError(
                f"{path} is damaged or incomplete ({error}); delete it and fetch or copy it again"
            ) from error
        infos = {i.filename: i for i in self.archive.infolist() if not i.is_dir()}
        roots = sorted((n[: -len(marker)] for n in infos if f"/{n}".endswith(f"/{marker}")), key=len)
        if not roots:
            raise DataError(f"{path} has no {marker}; it is not the published archive")
        self._infos = {n[len(roots[0]) :]: i for n, i in infos.items() if n.startswith(roots[0])}
        self._files: dict[str, list[str]] = {}
        for name in sorted(self._infos):
            folder, _, file = name.rpartition("/")
            self._files.setdefault(folder, []).append(file)

    def text(self, path: str) -> str | None:  # noqa: D102
        if path not in self._infos:
            return None
        try:
            return ZipMember(self.archive, self._infos[path]).read().decode()
        except (ImageError, ValueError) as error:
            raise DataError(f"{path} in {self.path}: {error}; fetch or copy the archive again") from error

    def files(self, folder: str) -> list[str]:  # noqa: D102
        return self._files.get(folder, [])

    def folders(self, folder: str) -> list[str]:  # noqa: D102
        inside = [f[len(folder) + 1 :] for f in self._files if f.startswith(f"{folder}/")]
        return sorted({f.partition("/")[0] for f in inside})

    def image(self, path: str) -> ZipMember:  # noqa: D102
        return ZipMember(self.archive, self._infos[path])

    def __str__(self) -> str:
        return str(self.path)
