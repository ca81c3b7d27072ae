"""What is in a folder of images, for every command that reads one: nothing that could be an image goes unnamed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import Enum
from fnmatch import fnmatch
from glob import has_magic
from typing import NamedTuple

from qdeploy.core.errors import ImageReason
from qdeploy.core.image_formats import NO_IMAGE, is_hidden, is_image_file, is_image_name
from qdeploy.core.regular import EXHAUSTED

LINKED_FOLDER = "a link to a folder, which is not followed"
_Listed = str | tuple[str, "int | Found | None"]
"""An image's name, with its inode if that is asked for, or another name with what it is; None of a folder."""


class Kind(Enum):
    """What a folder's entry is to those who look for images."""

    IMAGE = "image"
    OTHER = "other"
    """No image, by its suffix and its content."""
    LINKED = "linked folder"
    LOST = "lost"
    """What may be an image, or hold some, and cannot be had."""


class Found(NamedTuple):
    """One entry of a folder, or of one below it."""

    path: str
    kind: Kind
    why: str = ""
    """Why it is not taken; nothing of an image."""
    reason: ImageReason | None = None
    """The code of why it is lost."""
    inode: int = 0
    """An image's number in its file system; 0 where it is not asked for."""


def walk(
    folder: str, is_image: Callable[[os.DirEntry[str]], bool] = is_image_file, *, inodes: bool = False
) -> Iterator[Found]:
    """Return what is in a folder and in all below it, by name, but what is hidden or a system's own.

    Links to files are followed, those to folders are not. Folders are read as their turn comes: of each level one is
    in memory.

    Args:
        folder: The folder; where it cannot be read, it is what is found.
        is_image: Tells whether a regular file is an image: by its suffix, or else by its content. May raise OSError.
        inodes: Whether images come with their ``inode``; of large folders that takes twice the memory.

    Raises:
        OSError: If too many files are open.
    """
    levels: list[tuple[str, Iterator[_Listed]]] = [("", iter([(folder, None)]))]
    while levels:
        base, entries = levels[-1]
        listed = next(entries, ("", None))
        name, found = (listed, 0) if isinstance(listed, str) else listed
        path = os.path.join(base, name)
        if isinstance(found, int):
            yield Found(path, Kind.IMAGE, inode=found)
        elif found is not None:
            yield found
        elif name:
            below, problem = _listed(path, is_image, inodes)
            if problem is not None:
                yield problem
            levels.append((path, iter(below)))
        else:
            levels.pop()


def _listed(
    folder: str, is_image: Callable[[os.DirEntry[str]], bool], inodes: bool
) -> tuple[list[_Listed], Found | None]:
    """Return a folder's entries by name, and why not all of them could be read."""
    entries: list[_Listed] = []
    problem = None
    try:
        with os.scandir(folder) as scanned:
            for entry in scanned:
                if is_hidden(entry.name):
                    continue
                with suppress(FileNotFoundError):  # gone meanwhile
                    found = None if entry.is_dir(follow_symlinks=False) else what_is(entry, is_image)
                    if found is None or found.kind is not Kind.IMAGE:
                        entries.append((entry.name, found))
                    else:
                        entries.append((entry.name, found.inode) if inodes else entry.name)
    except OSError as error:
        problem = _lost(folder, error)
    entries.sort(key=lambda e: e if isinstance(e, str) else e[0])
    return entries, problem


def what_is(entry: os.DirEntry[str], is_image: Callable[[os.DirEntry[str]], bool] = is_image_file) -> Found:
    """Return what an entry is that is no folder itself.

    Raises:
        FileNotFoundError: If it is gone meanwhile.
        OSError: If too many files are open.
    """
    path = entry.path
    try:
        if entry.is_file():
            return (
                Found(path, Kind.IMAGE, inode=entry.inode()) if is_image(entry) else Found(path, Kind.OTHER, NO_IMAGE)
            )
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        if not entry.is_symlink():
            raise
        return _lost(path, error)
    except OSError as error:
        return _lost(path, error)
    if stat.S_ISDIR(mode):
        return Found(path, Kind.LINKED, LINKED_FOLDER)
    if is_image_name(entry.name):
        return Found(path, Kind.LOST, "is not a regular file", "not-a-file")
    return Found(path, Kind.OTHER, "is not a regular file")


def _lost(path: str, error: OSError) -> Found:
    if error.errno in EXHAUSTED:
        raise error
    if error.errno == errno.ENOENT and os.path.islink(path):
        return Found(path, Kind.LOST, "leads to no file", "not-found")
    if error.errno == errno.ELOOP:
        return Found(path, Kind.LOST, "leads to itself", "not-found")
    reason: ImageReason = "not-found" if error.errno == errno.ENOENT else "unreadable"
    return Found(path, Kind.LOST, f"cannot be read: {error.strerror or error}", reason)


def matches(pattern: str) -> list[str]:
    """Return what a glob matches, in order, and the folders on the way that cannot be read.

    It is read as Python's ``glob`` reads it, but ``**`` does not follow links to folders: two of them that lead to
    their own folder make ways without end.
    """
    parts = [part for part in pattern.split(os.sep) if part]
    return sorted(set(_matches(os.sep if pattern.startswith(os.sep) else "", parts)))


def _matches(base: str, parts: list[str]) -> Iterator[str]:
    """Return what the parts of a pattern match in a folder; an empty name is the folder one is in."""
    if not parts:
        yield base
    elif parts[0] == "**":
        yield from _below(base, parts[1:])
    elif not has_magic(parts[0]):
        path = os.path.join(base, parts[0])
        if os.path.isdir(path) if parts[1:] else os.path.lexists(path):
            yield from _matches(path, parts[1:])
    else:
        for path, name, is_folder in _names(base):
            hidden = name.startswith(".") and not parts[0].startswith(".")
            if not name:
                yield path
            elif fnmatch(name, parts[0]) and not hidden and (is_folder or not parts[1:]):
                yield from _matches(path, parts[1:])


def _below(base: str, parts: list[str]) -> Iterator[str]:
    """Return what the parts match in a folder and in all below it; without parts, all there is."""
    if parts:
        yield from _matches(base, parts)
    elif base:
        yield base
    for path, name, is_folder in _names(base):
        if name.startswith("."):
            continue
        if name and is_folder and not os.path.islink(path):
            yield from _below(path, parts)
        elif not (name and parts):
            yield path


def _names(folder: str) -> Iterator[tuple[str, str, bool]]:
    """Return path, name and whether it is or leads to a folder, of what a folder holds; without name what is lost."""
    try:
        with os.scandir(folder or os.curdir) as entries:
            for entry in entries:
                yield os.path.join(folder, entry.name), entry.name, os.path.isdir(os.path.join(folder, entry.name))
    except FileNotFoundError:
        return
    except OSError:
        yield folder or os.curdir, "", True
