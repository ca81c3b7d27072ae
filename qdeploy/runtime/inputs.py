"""Files, folders, globs and standard input, expanded to a stream of image names."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from queue import Queue
from threading import Thread

from qdeploy.core.errors import InputError
from qdeploy.core.image_formats import format_of, suffix_counts
from qdeploy.core.listing import Found, Kind, matches, walk

STDIN = "-"
WAITING_NAMES = 1024
"""Names of a list that are read ahead."""
NAMED_LINKS = 3
_A_LINK = " (a link to a folder)"


class Arriving:
    """The names of images as they arrive on a stream, one a line: each is given as soon as it is there."""

    def __init__(self, stream: Iterable[bytes]) -> None:
        self._names: Queue[str | None] = Queue(WAITING_NAMES)
        self._ended = False
        Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream: Iterable[bytes]) -> None:
        try:
            for line in stream:
                if name := os.fsdecode(line.rstrip(b"\r\n")):
                    self._names.put(f"./{name}" if name == STDIN else name)
        finally:
            self._names.put(None)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        name = None if self._ended else self._names.get()
        if name is None:
            self._ended = True
            raise StopIteration
        return name

    def idle(self) -> bool:
        """Return whether the next name is not there yet."""
        return not self._ended and self._names.empty()

    def take(self, most: int) -> list[str]:
        """Wait for a name and return it with those that are there already; nothing is left if it is empty."""
        names: list[str] = []
        while len(names) < most and not (names and self.idle()):
            name = next(self, None)
            if name is None:
                break
            names.append(name)
        return names


def listed_on_stdin() -> Arriving | None:
    """Return the images that standard input names, one a line, or None if it is an image or nothing.

    Its first bytes tell: they begin like an image, or are no text, or they are a list.
    """
    if sys.stdin is None or not hasattr(sys.stdin.buffer, "peek"):
        return None
    head: bytes = sys.stdin.buffer.peek(1)[:4096]
    line = head.partition(b"\n")[0].rstrip(b"\r")
    if not head or format_of(head) or any(byte < 32 and byte != 9 for byte in line):
        return None
    return Arriving(sys.stdin.buffer)


def expand(words: Iterable[str], left_out: Counter[str] | None = None) -> Iterator[str]:
    """Turn files, folders, globs and ``-`` into single images, folders and globs in sorted order.

    Folders are walked while the images are used: of 100,000 only the names of one folder are in memory. What is an
    image in a folder is told as ``listing.walk`` does; what may be one and cannot be read is given too, so that it is
    answered with the reason.

    Args:
        words: Paths, globs or ``-``.
        left_out: Counts the files of folders that are no images, by their suffixes, and the links to folders, which
            are not followed, while the images are used.

    Raises:
        InputError: If a folder or a glob holds no image; found before any image is given.
    """
    return chain.from_iterable([_expanded(word, Counter() if left_out is None else left_out) for word in words])


def _expanded(word: str, left_out: Counter[str]) -> Iterable[str]:
    if word == STDIN or os.path.isfile(word):  # unlike pathlib's they take any name, however long
        return (word,)
    if os.path.isdir(word):
        folder = str(Path(word))
        others: Counter[str] = Counter()
        if next(_images(folder, others), None) is None:
            raise InputError(f"the folder {word} holds no image", found=suffix_counts(others) or "no file")
        return _images(folder, left_out)
    if not glob.has_magic(word):
        return (word,)
    found = matches(word)
    if not found:
        raise InputError(f"no file matches '{word}'")
    return found


def _images(folder: str, left_out: Counter[str]) -> Iterator[str]:
    """Return the images below a folder, and what may be one and cannot be read, which is refused with the reason."""
    for found in walk(folder):
        if found.kind in (Kind.IMAGE, Kind.LOST):
            yield found.path
        else:
            left_out[_counted_as(found, left_out)] += 1


def _counted_as(found: Found, left_out: Counter[str]) -> str:
    """Return the suffix that a file counts for; links to folders are named, the first of them."""
    if found.kind is not Kind.LINKED:
        return os.path.splitext(found.path)[1].lower()
    named = sum(1 for key in left_out if key.endswith(_A_LINK))
    return f"{found.path}{_A_LINK}" if named < NAMED_LINKS else "links to folders"
