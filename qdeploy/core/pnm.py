"""PGM and PPM files of any depth: Pillow scales their values one by one in Python, for seconds, and by two rules.

Values up to 255 are scaled to 0..255 and rounded; of larger ones, scaled to 0..65535, the upper 8 bits are kept, as of
every 16-bit image.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BANDS = {b"P2": 1, b"P3": 3, b"P5": 1, b"P6": 3}
_WHITE = rb"(?:\s|#[^\r\n]*[\r\n])+"
_HEADER = re.compile(rb"(P[2356])" + rb"".join([_WHITE + rb"(\d{1,10})"] * 3) + rb"(?:#[^\r\n]*[\r\n])?\s")
"""Magic, width, height, largest value, and one byte of white space."""
_HEADER_MOST = 4096
_PART = 1 << 20
"""Bytes of a plain file whose words are in memory at a time."""
_LINE_END = re.compile(rb"[\r\n]")


class PnmHeader:
    """What a PGM or PPM file says of its pixels."""

    def __init__(self, data: bytes) -> None:
        """Read the header.

        Raises:
            ValueError: If it is damaged or cut off.
        """
        found = _HEADER.match(data[:_HEADER_MOST])
        if not found:
            raise ValueError("the header is damaged or cut off")
        self.plain = found[1] in (b"P2", b"P3")
        self.bands = BANDS[found[1]]
        self.size = (int(found[2]), int(found[3]))
        self.largest = int(found[4])
        self.start = found.end()
        if not 1 <= self.largest <= 65535:
            raise ValueError(f"the largest value must be 1 to 65535, found {self.largest}")
        if 0 in self.size:
            raise ValueError("has no pixels")


def read_pnm(data: bytes, header: PnmHeader) -> Image.Image:
    """Return the pixels as an 8-bit grey or RGB image.

    Raises:
        ValueError: If the file is cut off or its values are no numbers.
    """
    if not header.plain and header.largest == 255:  # the usual file needs no numpy
        count = header.size[0] * header.size[1] * header.bands
        if len(data) - header.start < count:
            raise ValueError("image file is truncated")
        mode = "L" if header.bands == 1 else "RGB"
        return Image.frombuffer(mode, header.size, data[header.start : header.start + count], "raw", mode, 0, 1).copy()
    import numpy as np

    largest = header.largest
    table = np.minimum(np.arange(65536, dtype=np.uint32), largest)
    table = (
        (table * 510 + largest) // (2 * largest) if largest <= 255 else (table * 65535 + largest // 2) // largest >> 8
    )
    width, height = header.size
    shape = (height, width) if header.bands == 1 else (height, width, 3)
    return Image.fromarray(table.astype(np.uint8)[_values(data, header)].reshape(shape))


def _values(data: bytes, header: PnmHeader) -> NDArray[np.unsignedinteger[Any]]:
    import numpy as np

    count = header.size[0] * header.size[1] * header.bands
    if not header.plain:
        kind = np.dtype(">u2" if header.largest > 255 else "u1")
        if len(data) - header.start < count * kind.itemsize:
            raise ValueError("image file is truncated")
        return np.frombuffer(data, kind, count, header.start)
    values = np.empty(count, np.uint16)
    done, at = 0, header.start
    while done < count:
        words, at = _words(data, at)
        if not words:
            raise ValueError("image file is truncated")
        words = words[: count - done]
        if not all(word.isdigit() and len(word) < 10 for word in words):
            raise ValueError("a value is no number")
        values[done : done + len(words)] = np.minimum(np.array(words, np.bytes_).astype(np.uint32), header.largest)
        done += len(words)
    return values


def _words(data: bytes, at: int) -> tuple[list[bytes], int]:
    """Return the next words of a plain file, without comments, and where those behind them begin: a part at a time.

    A part ends behind white space, so that no word is cut; a comment goes on to the end of its line.
    """
    words: list[bytes] = []
    while at < len(data) and not words:
        end = min(len(data), at + _PART)
        while end < len(data) and not data[end - 1 : end].isspace():
            end += 1
        part = data[at:end]
        if part.rfind(b"#") > max(part.rfind(b"\n"), part.rfind(b"\r")):
            line = _LINE_END.search(data, end)
            end = line.end() if line else len(data)
            part = data[at:end]
        words, at = re.sub(rb"#[^\r\n]*", b"", part).split(), end
    return words, at
