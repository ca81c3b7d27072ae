"""Decoding of image files, for every part of qdeploy: one function, strict limits, no silent surprises."""

from __future__ import annotations

import errno
import io
import os
import struct
import warnings
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError, WebPImagePlugin

from qdeploy.core.errors import ImageError, ImageReason
from qdeploy.core.image_bounds import require_bounded, require_few_scans, webp_size
from qdeploy.core.image_formats import FORMATS, HEAD_BYTES, MAX_FILE_BYTES, format_of
from qdeploy.core.regular import EXHAUSTED, NotRegularError, TooLargeError, read_regular

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_PIXELS = 64_000_000
"""Checked against the header before any pixel is decoded: a 12 kB file can hold 100 megapixels."""
MAX_SIDE = 16_384
LARGE_PIXELS = 16_000_000
"""Images beyond it are decoded one at a time, whatever the number of workers: each takes hundreds of megabytes."""
PEAK_BYTES = 12
"""Memory for a pixel that a decoder and the conversion to RGB may ask for at once."""
_ONE_LARGE = Lock()
_LIMITS = f"the limits of {MAX_PIXELS // 10**6} megapixels and {MAX_SIDE} a side"

_NOT_READABLE = f"not a readable {'/'.join(FORMATS)} image"
RGB = tuple[int, int, int]

_ORIENTATION = 0x0112  # EXIF tag
_PHOTOMETRIC, _SAMPLE_FORMAT = 262, 339  # TIFF tags
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DAMAGE = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, struct.error),
    RuntimeError,  # of an AVIF
)
"""What Pillow raises on damaged files, by fuzzing."""
_LATER = {"TIFF": "TiffImagePlugin", "AVIF": "AvifImagePlugin"}
"""Pillow's modules that are loaded when the first such file comes: they are rare, and cost a start milliseconds."""
_OURS = (b"\xff\xd8", b"\x89PN", b"RIFF", b"BM")
"""Beginnings of formats that are taken, of files in which the rest of the mark is damaged."""
_OTHERS = {
    b"%PDF": "a PDF",
    b"%!PS": "PostScript",
    b"8BPS": "a Photoshop file",
    b"\0\0\1\0": "an ICO",
    b"<": "SVG, HTML or XML text",
}
"""First bytes of other formats that users give as images."""


def decode(source: bytes | Path, background: RGB, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Decode one file of ``image_formats.FORMATS`` to an upright 8-bit RGB image.

    Its content tells the format, whatever its name. The orientation is applied, transparency is composited on
    ``background``, 16 bits keep their upper 8, and of an animation, a multi-picture JPEG or a TIFF of several pages
    the first is taken; ``info["frames"]`` of the image then tells how many there are.

    Args:
        source: The file's bytes or its path.
        background: Red, green, blue in 0..255, seen through transparent pixels.
        formats: Which of them are taken.

    Raises:
        ImageError: If it cannot be read, is no such image, is truncated or exceeds the limits; see its ``reason``.
    """
    data = source if isinstance(source, bytes) else image_bytes(source)
    if len(data) > MAX_FILE_BYTES:
        raise _too_large(len(data))
    size = (0, 0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # limits are ours; EXIF and bomb warnings have no reader here
            with _opened(data, formats) as image:
                size = image.size
                _check_size(size)
                require_few_scans(image, data)
                frames = _frames(image, data)
                with _ONE_LARGE if _is_large(size) else nullcontext():
                    image.load()
                    upright = _upright_rgb(image, background)
                upright.info = {"frames": frames} if frames > 1 else {}
                return upright
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError("there is not enough memory for it now", "out-of-memory") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"has more pixels than {_LIMITS}", "too-many-pixels") from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except _DAMAGE as error:
        if _is_large(size) and not _is_room_for(size):  # some decoders call that a damaged file
            raise ImageError("there is not enough memory for it now", "out-of-memory") from error
        raise _damaged(_NOT_READABLE, error) from error


def _is_large(size: tuple[int, int]) -> bool:
    return size[0] * size[1] > LARGE_PIXELS


def _is_room_for(size: tuple[int, int]) -> bool:
    try:
        bytearray(PEAK_BYTES * size[0] * size[1])
    except MemoryError:
        return False
    return True


def _opened(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """Open a file with the one decoder that its first bytes ask for."""
    name = _decoder_of(data, formats)
    if name == "PPM" and data[:2] not in (b"P1", b"P4"):
        from qdeploy.core.pnm import PnmHeader, read_pnm

        header = PnmHeader(data)
        _check_size(header.size)
        return read_pnm(data, header)
    require_bounded(name, data)
    if name == "WEBP" and (size := webp_size(data)):
        _check_size(size)
    return Image.open(io.BytesIO(data), formats=[name])


def _frames(image: Image.Image, data: bytes) -> int:
    """Return the number of frames or pages of an opened file; 2 of a GIF that moves."""
    if image.format == "TIFF":
        from qdeploy.core.tiff import page_count  # here and below: few images are TIFFs

        return page_count(data)
    if image.format == "GIF":  # its frames could only be counted by reading them all
        return 2 if getattr(image, "is_animated", False) else 1
    return int(getattr(image, "n_frames", 1))


def _decoder_of(data: bytes, formats: tuple[str, ...]) -> str:
    """Return Pillow's name of the one decoder that a file's first bytes ask for, which is loaded then.

    Raises:
        ImageError: If they begin no format that is taken.
    """
    name = format_of(data[:HEAD_BYTES])
    if name is None:
        raise _unidentified(data)
    if name not in formats:
        raise ImageError(f"is a {name} file, and only {', '.join(formats)} are taken here", "unsupported-format")
    if name not in Image.OPEN:
        Image.preinit()
        if name in _LATER:
            import_module(f"PIL.{_LATER[name]}")
    if name == "TIFF":
        from qdeploy.core.tiff import silence_tiff

        silence_tiff()
    return name


def load_decoders() -> None:
    """Load what decodes the usual formats now, and not when the first image is decoded."""
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
        turn = _UPRIGHT.get(orientation or 0)  # a rational or float that is one of the numbers counts as it
    except (*_DAMAGE, TypeError):  # unusable EXIF: the pixels are fine
        turn = None
    return _to_rgb(image if turn is None else image.transpose(turn), background)


def image_bytes(path: Path) -> bytes:
    """Return an image file's content.

    Raises:
        ImageError: If it is no regular file, cannot be read or is too large.
        OSError: If too many files are open.
    """
    try:
        return read_regular(path, MAX_FILE_BYTES)
    except TooLargeError as error:
        raise _too_large(error.size_bytes) from error
    except NotRegularError as error:
        raise ImageError(str(error), "not-a-file") from error
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise ImageError("leads to no file" if os.path.islink(path) else "no such file", "not-found") from error
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise
        if error.errno == errno.ELOOP:
            raise ImageError("leads to itself", "not-found") from error
        raise ImageError(f"cannot be read: {error.strerror or error}", "unreadable") from error


def _too_large(size: int) -> ImageError:
    return ImageError(f"has {size / 2**20:.0f} MiB; the limit is {MAX_FILE_BYTES // 2**20} MiB", "too-large")


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImageError(f"has {width}x{height} pixels, more than {_LIMITS}", "too-many-pixels")


def _to_rgb(image: Image.Image, background: RGB) -> Image.Image:
    tags = getattr(image, "tag_v2", {})  # a TIFF's
    if image.mode in ("I", "F") or set(_numbers(tags.get(_SAMPLE_FORMAT))) - {1, 4}:
        raise ImageError(
            "has signed, 32-bit or floating-point pixels, whose range is unknown; convert it to 8 bits",
            "unsupported-mode",
        )
    if image.mode.startswith("I;16"):
        image = _eight_bits(image, white_is_zero=tags.get(_PHOTOMETRIC) == 0)
    if "A" in image.getbands() or "transparency" in image.info:
        return _composited(image, background)
    if image.mode == "RGB":
        image.load()
        return image
    return image.convert("RGB")


def _composited(image: Image.Image, background: RGB) -> Image.Image:
    """Lay an image on a colour, some rows at a time: three copies of a large one would take a gigabyte."""
    result = Image.new("RGB", image.size)
    rows = max(1, LARGE_PIXELS // 16 // image.width)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(image.height, top + rows)))
        part.info = dict(image.info)  # the transparent colour of a palette or of grey
        rgba = part.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (*background, 255))
        result.paste(Image.alpha_composite(canvas, rgba).convert("RGB"), (0, top))
    return result


def _numbers(value: object) -> tuple[object, ...]:
    return () if value is None else value if isinstance(value, tuple) else (value,)


def _eight_bits(image: Image.Image, white_is_zero: bool) -> Image.Image:
    """Keep the upper 8 of 16 bits: convert() would saturate, every value above 255 is white.

    Pillow does not obey ``white_is_zero`` of a TIFF with 16 bits, as it does with 8.
    """
    import numpy as np

    values = np.asarray(image)
    if white_is_zero:
        values = 65535 - values
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _unidentified(data: bytes) -> ImageError:
    """Return the error for a file whose first bytes no decoder recognises."""
    what = _NOT_READABLE
    if not data:
        return ImageError(f"{what}: the file is empty", "empty")
    if format_of(data[:HEAD_BYTES]) == "AVIF" and not _reads_avif():
        return ImageError(f"{what}: it is AVIF, which Pillow cannot read here; save it as PNG", "unsupported-format")
    if format_of(data[:HEAD_BYTES]) == "TIFF" and _has_whole_directory(data):
        return ImageError(f"{what}: a TIFF of bits, bands or a packing that are not read", "unsupported-mode")
    if data.startswith(_OURS) or format_of(data[:HEAD_BYTES]):
        return ImageError(f"{what}: its beginning is damaged or cut off", "damaged")
    start = data[:64].lstrip()
    names = [name for magic, name in _OTHERS.items() if start.startswith(magic)]
    if data[4:8] == b"ftyp":
        names = ["HEIC"]
    found = f"it is {names[0]}; save it as PNG or JPEG" if names else "unknown format"
    return ImageError(f"{what}: {found}", "unsupported-format")


def _has_whole_directory(data: bytes) -> bool:
    from qdeploy.core.tiff import has_whole_directory

    return has_whole_directory(data)


def _reads_avif() -> bool:
    from PIL import features

    return bool(features.check("avif"))


def _damaged(what: str, error: BaseException) -> ImageError:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    reason: ImageReason = "damaged"
    if "truncated" in text.lower():
        reason = "truncated"
    elif "out of memory" in text.lower():
        reason = "out-of-memory"
    elif text.startswith("conversion from"):
        reason = "unsupported-mode"
    return ImageError(f"{what}: {text}", reason)
