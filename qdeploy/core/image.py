"""Decoding of image files, for every part of qdeploy: one function, strict limits, no silent surprises."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from qdeploy.core.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
MAX_FILE_BYTES = 32 * 2**20
MAX_PIXELS = 64_000_000
"""Checked against the header before any pixel is decoded: a 12 kB file can hold 100 megapixels."""
MAX_SIDE = 16_384

RGB = tuple[int, int, int]

_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, struct.error)
"""What Pillow raises on damaged files, by fuzzing."""


def decode(source: bytes | Path, background: RGB) -> Image.Image:
    """Decode one JPEG, PNG, WebP or BMP file to an upright 8-bit RGB image.

    The EXIF orientation is applied, transparency is composited on ``background``, 16-bit grey keeps its
    upper 8 bits, and of an animation the first frame is taken.

    Args:
        source: The file's bytes or its path.
        background: Red, green, blue in 0..255, seen through transparent pixels.

    Raises:
        ImageError: If it cannot be read, is no such image, is truncated or exceeds the limits.
    """
    data = source if isinstance(source, bytes) else _read(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # limits are ours; EXIF and bomb warnings have no reader here
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image)
                image.load()
                return upright_rgb(image, background)
    except ImageError:
        raise
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise ImageError(f"not a readable {'/'.join(FORMATS)} image: {_reason(error)}") from error


def upright_rgb(image: Image.Image, background: RGB) -> Image.Image:
    """Apply the EXIF orientation and turn any mode into 8-bit RGB."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except _DAMAGE:  # unusable EXIF: the pixels are fine
        orientation = None
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return _to_rgb(image if turn is None else image.transpose(turn), background)


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ImageError("is a folder, not an image")
        if not path.is_file():
            raise ImageError("no such file" if not path.exists() else "is not a regular file")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ImageError(f"has {size / 2**20:.0f} MiB; the limit is {MAX_FILE_BYTES // 2**20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from error


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImageError(
            f"has {width}x{height} pixels; the limits are {MAX_PIXELS // 10**6} megapixels and {MAX_SIDE} a side"
        )


def _to_rgb(image: Image.Image, background: RGB) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):  # convert() would saturate: every value above 255 is white
        grey = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError("has floating-point pixels, whose range is unknown; convert it to 8 bits")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (*background, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def _reason(error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "unknown format" if "cannot identify" in text else text
