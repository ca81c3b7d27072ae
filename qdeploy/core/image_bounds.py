"""How much work an image file asks for, read from what it declares, before a decoder begins with it.

A few kB can ask for minutes: scans of a progressive JPEG go over all its pixels, and Pillow reads segments, chunks and
blocks one by one in Python. Files of cameras, phones, editors and optimizers stay far below every limit here.
"""

from __future__ import annotations

import struct

from PIL import Image

from qdeploy.core.errors import ImageError

MOST_SCANNED = 1_600_000_000
"""Pixels times scans of a JPEG: 25 scans of the largest image; usual are 10. About 2 s."""
MOST_SEGMENTS = 4096
"""Of a JPEG before its pixels; usual are 10 to 30, and 600 for an embedded profile of the largest size and XMP."""
MOST_JUNK = 65_536
"""Bytes between the segments of a JPEG."""
MOST_CHUNKS = 65_536
"""Of a PNG; usual is one for 8 kB of pixels."""
MOST_BLOCKS = 400_000
"""Of a GIF's first two frames; usual is one for 255 bytes."""
MOST_TAGS = 4096
"""Of a TIFF's first page; usual are 10 to 60."""


def require_bounded(name: str, data: bytes) -> None:
    """Refuse a file of too many parts.

    Args:
        name: Pillow's name of its format.
        data: The file.

    Raises:
        ImageError: If it is one.
    """
    limits = {
        "JPEG": (_jpeg_segments, MOST_SEGMENTS, "segments"),
        "PNG": (_png_chunks, MOST_CHUNKS, "chunks"),
        "GIF": (_gif_blocks, MOST_BLOCKS, "blocks"),
        "TIFF": (_tiff_tags, MOST_TAGS, "tags"),
    }
    if name in limits:
        count, most, what = limits[name]
        try:
            found = count(data, most)
        except (IndexError, struct.error):  # it ends too early: the decoder says so
            return
        if found > most:
            raise ImageError(f"has more than {most:,} {what}, as no sound image has", "damaged")


def require_few_scans(image: Image.Image, data: bytes) -> None:
    """Refuse a JPEG that goes over its pixels too often.

    Args:
        image: The file, opened and not loaded.
        data: The file.

    Raises:
        ImageError: If it is one.
    """
    one = bytes((0, 6 + 2 * getattr(image, "layers", 0), getattr(image, "layers", 0)))
    fp = getattr(image, "fp", None)
    if fp is None or image.format not in ("JPEG", "MPO"):
        return
    at = fp.tell() - one[1]
    if "progressive" not in image.info and data[at : at + 3] == one:
        return  # the usual file: one scan holds all
    scans = data.count(b"\xff\xda")
    if scans * image.width * image.height > MOST_SCANNED:
        raise ImageError(
            f"goes over its {image.width}x{image.height} pixels {scans} times, more than an image needs", "damaged"
        )


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a WebP, whose decoder takes memory for all pixels when it is opened."""
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and len(data) >= 30:
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return None


def _jpeg_segments(data: bytes, most: int) -> int:
    """Count the segments before the first scan; much junk between them counts as too many."""
    at, count, junk = 2, 0, 0
    while count <= most:
        start = data.find(b"\xff", at)
        if start < 0:
            return count
        junk += start - at
        while data[start + 1] == 0xFF:
            start, junk = start + 1, junk + 1
            if junk > MOST_JUNK:
                break
        if junk > MOST_JUNK:
            return most + 1
        marker = data[start + 1]
        if marker in (0xDA, 0xD9):
            return count
        alone = marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8
        at = start + 2 + (0 if alone else int.from_bytes(data[start + 2 : start + 4], "big"))
        count += 1
    return count


def _png_chunks(data: bytes, most: int) -> int:
    at, count = 8, 0
    while at + 8 <= len(data) and count <= most:
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        count += 1
    return count


def _gif_blocks(data: bytes, most: int) -> int:
    """Count the blocks up to the end of the second frame, by which is told whether the file moves."""
    at = 13 + _colours(data[10])
    count = frames = 0
    while count <= most and frames < 2:
        kind = data[at]
        if kind == 0x21:
            at += 2
        elif kind == 0x2C:
            at += 11 + _colours(data[at + 9])
            frames += 1
        else:
            return count
        while data[at] and count <= most:
            at += 1 + data[at]
            count += 1
        at += 1
        count += 1
    return count


def _colours(flags: int) -> int:
    """Return the bytes of the table of colours that a byte of flags announces."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _tiff_tags(data: bytes, most: int) -> int:
    order, big = ("<" if data[:2] == b"II" else ">"), 43 in data[2:4]
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    return int(count)
