"""What has to be known of a TIFF beyond its first page's pixels, read from its directories."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache

import PIL._imaging

MOST_PAGES = 10_000
"""Where counting ends, so that no file can make it long."""


def page_count(data: bytes) -> int:
    """Return the number of a TIFF's pages: of directories until their chain ends, leaves the file or comes back."""
    return max(1, sum(1 for _ in _directories(data)))


def has_whole_directory(data: bytes) -> bool:
    """Tell whether the first directory is in the file: if it cannot be read then, it is of a kind that is unknown."""
    return next(_directories(data), None) is not None


@cache
def silence_tiff() -> None:
    """Keep libtiff and Pillow from writing to stderr what is wrong with a TIFF: the error is told, in one line."""
    import ctypes
    import logging

    logging.getLogger("PIL").addHandler(logging.NullHandler())

    try:
        library = ctypes.CDLL(PIL._imaging.__file__)  # Pillow's module, through which what it is linked with is found
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)
    except (OSError, AttributeError):  # linked in another way: the lines stay
        pass


def _directories(data: bytes) -> Iterator[int]:
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    count_code, word_code = (order + "Q", order + "Q") if big else (order + "H", order + "I")
    entry_bytes = 20 if big else 12
    seen: set[int] = set()
    try:
        (at,) = struct.unpack_from(word_code, data, 8 if big else 4)
        while at and at not in seen and len(seen) < MOST_PAGES:
            (entries,) = struct.unpack_from(count_code, data, at)
            end = at + struct.calcsize(count_code) + entries * entry_bytes
            if end > len(data):
                return
            seen.add(at)
            yield at
            (at,) = struct.unpack_from(word_code, data, end)
    except struct.error:  # the first page may be whole all the same
        return
