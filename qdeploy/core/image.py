"""Decoding of image files, for every part of qdeploy: one function, strict limits, no silent surprises."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError, WebPImagePlugin

from qdeploy.core.errors import ImageError, ImageReason
from qdeploy.core.image_formats import FORMATS, MAX_FILE_BYTES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_PIXELS = 64_000_000
"""Checked against the header before any pixel is decoded: a 12 kB file can hold 100 megapixels."""
MAX_SIDE = 16_384
_LIMITS = f"the limits of {MAX_PIXELS // 10**6} megapixels and {MAX_SIDE} a side"

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
_OURS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"BM")
"""First bytes of the formats in ``FORMATS``."""
_OTHERS = {
    b"GIF8": "a GIF",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"%PDF": "a PDF",
    b"%!PS": "PostScript",
    b"8BPS": "a Photoshop file",
    b"\0\0\1\0": "an ICO",
    b"<": "SVG, HTML or XML text",
}
"""First bytes of other formats that users give as images."""


def decode(source: bytes | Path, background: RGB) -> Image.Image:
    """Decode one JPEG, PNG, WebP or BMP file to an upright 8-bit RGB image.

    The EXIF orientation is applied, transparency is composited on ``background``, 16-bit grey keeps its
    upper 8 bits, and of an animation or a multi-picture JPEG the first frame is taken.

    Args:
        source: The file's bytes or its path.
        background: Red, green, blue in 0..255, seen through transparent pixels.

    Raises:
        ImageError: If it cannot be read, is no such image, is truncated or exceeds the limits; see its ``reason``.
    """
    data = source if isinstance(source, bytes) else _read(source)
    if len(data) > MAX_FILE_BYTES:
        raise _too_large(len(data))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # limits are ours; EXIF and bomb warnings have no reader here
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image)
                image.load()
                return _upright_rgb(image, background)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"has more pixels than {_LIMITS}", "too-many-pixels") from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except _DAMAGE as error:
        raise _damaged(f"not a readable {'/'.join(FORMATS)} image", error) from error


def load_decoders() -> None:
    """Load what decodes ``FORMATS`` now, and not when the first image is decoded."""
    Image.preinit()
    assert WebPImagePlugin  # without it Pillow loads all its formats at the first WebP, BMP or unknown file


def rgb_from_array(array: NDArray[np.uint8], background: RGB) -> Image.Image:
    """Turn a uint8 array into an 8-bit RGB image, by the rules of ``decode``.

    Raises:
        ImageError: If it is none, or of another shape than ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]``.
    """
    if array.dtype != "uint8" or 0 in array.shape or not (array.ndim == 2 or array.shape[2:] in ((3,), (4,))):
        raise ImageError(
            f"an array must be uint8 [H, W], [H, W, 3] or [H, W, 4], found {array.dtype} {list(array.shape)}",
            "unsupported-mode",
        )
    return rgb_from_pil(Image.fromarray(array), background)


def rgb_from_pil(image: Image.Image, background: RGB) -> Image.Image:
    """Turn a PIL image of any mode into an upright 8-bit RGB image, by the rules of ``decode``.

    Raises:
        ImageError: If it has no pixels, cannot be loaded, or its mode says nothing about colours.
    """
    if 0 in image.size:
        raise ImageError("has no pixels", "empty")
    try:
        return _upright_rgb(image, background)
    except _DAMAGE as error:
        raise _damaged("the PIL image cannot be used", error) from error


def _upright_rgb(image: Image.Image, background: RGB) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except _DAMAGE:  # unusable EXIF: the pixels are fine
        orientation = None
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return _to_rgb(image if turn is None else image.transpose(turn), background)


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ImageError("is a folder, not an image", "not-a-file")
        if not path.is_file():
            if path.exists():
                raise ImageError("is not a regular file", "not-a-file")
            raise ImageError("leads to no file" if path.is_symlink() else "no such file", "not-found")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise _too_large(size)
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}", "unreadable") from error


def _too_large(size: int) -> ImageError:
    return ImageError(f"has {size / 2**20:.0f} MiB; the limit is {MAX_FILE_BYTES // 2**20} MiB", "too-large")


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImageError(f"has {width}x{height} pixels, more than {_LIMITS}", "too-many-pixels")


def _to_rgb(image: Image.Image, background: RGB) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.mode in ("I", "F"):
        raise ImageError(
            "has 32-bit or floating-point pixels, whose range is unknown; convert it to 8 bits", "unsupported-mode"
        )
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (*background, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    if image.mode == "RGB":
        image.load()
        return image
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Keep the upper 8 of 16 bits: convert() would saturate, every value above 255 is white."""
    import numpy as np

    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _unidentified(data: bytes) -> ImageError:
    """Return the error for a file whose first bytes no decoder recognises."""
    what = f"not a readable {'/'.join(FORMATS)} image"
    if not data:
        return ImageError(f"{what}: the file is empty", "empty")
    if data.startswith(_OURS):
        return ImageError(f"{what}: its beginning is damaged or cut off", "damaged")
    start = data[:64].lstrip()
    names = [name for magic, name in _OTHERS.items() if start.startswith(magic)]
    if data[4:8] == b"ftyp":
        names = ["AVIF or HEIC"]
    found = f"it is {names[0]}; save it as PNG or JPEG" if names else "unknown format"
    return ImageError(f"{what}: {found}", "unsupported-format")


def _damaged(what: str, error: BaseException) -> ImageError:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    reason: ImageReason = "damaged"
    if "truncated" in text.lower():
        reason = "truncated"
    elif text.startswith("conversion from"):
        reason = "unsupported-mode"
    return ImageError(f"{what}: {text}", reason)
