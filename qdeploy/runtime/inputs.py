"""Files, folders, globs and standard input, expanded to a stream of image names."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from qdeploy.core.errors import InputError
from qdeploy.core.image_formats import SUFFIXES

STDIN = "-"


def expand(words: Iterable[str]) -> Iterator[str]:
    """Turn files, folders, globs and ``-`` into single images, folders and globs in sorted order.

    Folders are walked while the images are used: of 100,000 only the names of one folder are in memory. Links to
    folders are not followed.

    Raises:
        InputError: If a folder or a glob holds no image; found before any image is given.
    """
    return chain.from_iterable([_expanded(word) for word in words])


def _expanded(word: str) -> Iterable[str]:
    if word == STDIN or os.path.isfile(word):  # unlike pathlib's they take any name, however long
        return (word,)
    if os.path.isdir(word):
        folder = str(Path(word))
        if next(_walk(folder), None) is None:
            raise InputError(f"the folder {word} holds no image ({', '.join(sorted(SUFFIXES))})")
        return _walk(folder)
    if not glob.has_magic(word):
        return (word,)
    matches = sorted(glob.glob(word, recursive=True))
    if not matches:
        raise InputError(f"no file matches '{word}'")
    return matches


def _walk(folder: str) -> Iterator[str]:
    """Return the images below a folder, and the folders that cannot be listed."""
    levels = [iter([(folder, True)])]
    while levels:
        path, is_folder = next(levels[-1], ("", False))
        if is_folder:
            try:
                levels.append(_listed(path))
            except OSError:
                yield path
        elif path:
            yield path
        else:
            levels.pop()


def _listed(folder: str) -> Iterator[tuple[str, bool]]:
    """Return a folder's images and folders by name, each with whether it is a folder."""
    names, folders = [], set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.add(entry.name)
            elif not (_is_image(entry.name) and entry.is_file()):
                continue
            names.append(entry.name)
    names.sort()
    return ((os.path.join(folder, name), name in folders) for name in names)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES
