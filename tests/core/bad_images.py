"""Image files as people and attackers send them, made on the spot: readable ones with their pixels, and the others."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
RED, BLUE, WHITE = (200, 40, 30), (20, 60, 220), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """Give a PNG file; ``rows`` are its unfiltered lines, each behind a 0."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"".join((b"\x89PNG\r\n\x1a\n", header, *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")))


def quarters() -> Pixels:
    """An upright picture whose four corners differ, 24 high and 32 wide."""
    pixels = np.full((24, 32, 3), 128, np.uint8)
    pixels[:12, :16], pixels[:12, 16:], pixels[12:, :16] = RED, BLUE, WHITE
    return pixels


def flat(colour: tuple[int, int, int], shape: tuple[int, int] = (8, 8)) -> Pixels:
    return np.full((*shape, 3), colour, np.uint8)


def stored_for(orientation: int, upright: Pixels) -> Pixels:
    """Give what a camera stores, by EXIF's words: which side the first row and the first column are."""
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }
    return np.ascontiguousarray(turned[orientation])


def with_exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(stored_for(orientation, quarters()))
    return encoded(image, "JPEG", exif=exif, quality=95, subsampling=0)


def corrupt_exif() -> bytes:
    data = bytearray(with_exif(1))
    at = data.index(b"Exif") + 6
    data[at : at + 14] = b"\xff" * 14
    return bytes(data)


def ycck(colour: tuple[int, int, int]) -> bytes:
    """Give a YCCK JPEG: a CMYK one whose planes are the YCbCr of the inks, and whose Adobe marker says so."""
    inks = Image.new("RGB", (16, 16), tuple(255 - c for c in colour)).convert("YCbCr").getpixel((0, 0))
    planes = (*(255 - v for v in inks), 0)  # type: ignore[union-attr]
    data = bytearray(encoded(Image.new("CMYK", (16, 16), planes), "JPEG", quality=100))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def animated(kind: str, **options: Any) -> bytes:
    later = [Image.new("RGB", (8, 8), c) for c in (BLUE, WHITE)]
    return encoded(Image.new("RGB", (8, 8), RED), kind, save_all=True, append_images=later, **options)


def sixteen(values: list[int], *extra: bytes) -> bytes:
    return png(len(values), 1, 16, 0, b"\0" + struct.pack(f">{len(values)}H", *values), *extra)


def palette(**options: Any) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    return encoded(image, **options)


def grey(mode: str) -> Image.Image:
    return Image.new("L", (8, 8), 255).convert(mode)


def two(left: tuple[int, int, int], right: tuple[int, int, int]) -> Pixels:
    return np.array([[left, right]], np.uint8)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


PNG, JPEG = (encoded(Image.fromarray(quarters()), kind) for kind in ("PNG", "JPEG"))

READABLE: dict[str, tuple[bytes, Pixels]] = {
    "L": (encoded(grey("L")), flat(WHITE)),
    "LA": (encoded(grey("LA")), flat(WHITE)),
    "1 bit": (encoded(grey("1")), flat(WHITE)),
    "P": (palette(), two(RED, BLUE)),
    "P with a transparent entry": (palette(transparency=1), two(RED, WHITE)),
    "RGBA": (png(2, 1, 8, 6, b"\0" + bytes([*RED, 255, *BLUE, 0])), two(RED, WHITE)),
    "grey of 16 bits": (sixteen([0, 65535]), two((0, 0, 0), WHITE)),
    "grey of 16 bits in its lower half": (sixteen([255, 256]), two((0, 0, 0), (1, 1, 1))),
    "grey of 16 bits with a transparent value": (
        sixteen([300, 301], chunk(b"tRNS", b"\x01\x2c")),
        two(WHITE, (1, 1, 1)),
    ),
    "RGB of 16 bits": (png(1, 1, 16, 2, b"\0" + struct.pack(">HHH", 65535, 32768, 255)), flat((255, 128, 0), (1, 1))),
    "CMYK": (encoded(Image.new("CMYK", (8, 8), (55, 215, 225, 0)), "JPEG", quality=100), flat(RED)),
    "YCCK": (ycck(RED), flat(RED, (16, 16))),
    "grey JPEG": (encoded(grey("L"), "JPEG"), flat(WHITE)),
    "progressive JPEG": (encoded(Image.fromarray(flat(RED)), "JPEG", progressive=True), flat(RED)),
    **{f"EXIF {k}": (with_exif(k), quarters()) for k in range(1, 9)},
    "corrupt EXIF": (corrupt_exif(), quarters()),
    "animated WebP": (animated("WEBP", lossless=True), flat(RED)),
    "animated PNG": (animated("PNG"), flat(RED)),
    "two pictures in a JPEG (MPO)": (animated("MPO"), flat(RED)),
    "BMP": (encoded(Image.fromarray(flat(BLUE)), "BMP"), flat(BLUE)),
    "GIF": (encoded(Image.fromarray(flat(RED)), "GIF"), flat(RED)),
    "animated GIF": (animated("GIF"), flat(RED)),
    "TIFF": (encoded(Image.fromarray(flat(RED)), "TIFF"), flat(RED)),
    "TIFF of several pictures": (animated("TIFF"), flat(RED)),
    "AVIF": (encoded(Image.fromarray(flat(RED)), "AVIF", quality=95), flat(RED)),
    "junk behind the end": (encoded(Image.fromarray(flat(RED))) + b"<script>" * 99, flat(RED)),
    "polyglot of JPEG and zip": (encoded(Image.fromarray(flat(RED)), "JPEG") + b"PK\5\6" + bytes(18), flat(RED)),
    "bad CRC of the pixels, which have a checksum of their own": (flipped(PNG, len(PNG) - 13), quarters()),
    "1x1": (encoded(Image.new("RGB", (1, 1), RED)), flat(RED, (1, 1))),
    "1x16000": (encoded(Image.new("RGB", (1, 16_000), RED)), flat(RED, (16_000, 1))),
}
"""Files with the pixels that they show; JPEG and WebP within a few units."""


def claims(width: int, height: int, kind: str) -> bytes:
    """Give a small file whose header claims a size."""
    if kind == "PNG":
        return png(width, height, 1, 0, b"")
    if kind == "WEBP":
        body = b"\x2f" + struct.pack("<I", (width - 1) | ((height - 1) << 14)) + bytes(21)
        return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body
    if kind == "BMP":
        return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    data = bytearray(encoded(Image.new("L", (8, 8)), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def bomb_of_100_megapixels() -> bytes:
    """A whole PNG of 10,000 by 10,000 pixels in 12 kB."""
    packer = zlib.compressobj(9)
    packed = b"".join([packer.compress(bytes(1251)) for _ in range(10_000)] + [packer.flush()])
    empty = png(10_000, 10_000, 1, 0, b"")
    return empty.replace(chunk(b"IDAT", zlib.compress(b"")), chunk(b"IDAT", packed))


def text_bomb(name: bytes, before: bytes) -> bytes:
    return png(4, 4, 8, 0, bytes(20), chunk(name, before + zlib.compress(bytes(50_000_000), 9)))


BROKEN = ("damaged", "truncated")

BOMBS = {
    "100 megapixels": (bomb_of_100_megapixels(), ("too-many-pixels",)),
    "a header of 20000x20000": (claims(20_000, 20_000, "PNG"), ("too-many-pixels",)),
    "a JPEG header of 12000x12000": (claims(12_000, 12_000, "JPEG"), ("too-many-pixels",)),
    "a WebP header of 16383x16383": (claims(16_383, 16_383, "WEBP"), ("too-many-pixels",)),
    "a BMP header of 30000x30000": (claims(30_000, 30_000, "BMP"), ("too-many-pixels",)),
    "a zTXt bomb": (text_bomb(b"zTXt", b"a\0\0"), BROKEN),
    "an iTXt bomb": (text_bomb(b"iTXt", b"a\0\1\0\0\0"), BROKEN),
    "an iCCP bomb": (text_bomb(b"iCCP", b"a\0\0"), BROKEN),
}
"""Files that are small and ask for much."""

REFUSED: dict[str, tuple[bytes, tuple[str, ...]]] = {
    **BOMBS,
    "empty": (b"", ("empty",)),
    "one byte": (b"x", ("unsupported-format",)),
    "HTML": (b"<!DOCTYPE html><html><body>404</body></html>", ("unsupported-format",)),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'/>", ("unsupported-format",)),
    "PDF": (b"%PDF-1.7\n1 0 obj\n", ("unsupported-format",)),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n", ("unsupported-format",)),
    "base64 text": (b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAAB", ("unsupported-format",)),
    "TIFF of floats": (encoded(Image.new("F", (8, 8), 0.5), "TIFF"), ("unsupported-mode",)),
    "ICO": (encoded(Image.new("RGB", (16, 16)), "ICO"), ("unsupported-format",)),
    "AVIF that ends in its header": (b"\0\0\0\x1cftypavif" + bytes(64), BROKEN),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(64), ("unsupported-format",)),
    "0x0": (png(0, 0, 8, 0, b""), BROKEN),
    "1x20000": (encoded(Image.new("1", (1, 20_000))), ("too-many-pixels",)),
    "20000x1": (encoded(Image.new("1", (20_000, 1))), ("too-many-pixels",)),
    "bad CRC of the header": (flipped(PNG, 30), BROKEN),
    "a flipped bit of the pixels": (flipped(PNG, 55), BROKEN),
    **{f"PNG cut at {n}": (PNG[:n], BROKEN) for n in (8, 9, 20, 33, 45, 60, len(PNG) - 24)},
    **{f"JPEG cut at {n}": (JPEG[:n], BROKEN) for n in (3, 20, 160, 500, 600, len(JPEG) - 2)},
    "WebP cut": (encoded(Image.fromarray(quarters()), "WEBP")[:60], BROKEN),
    "BMP cut": (encoded(Image.fromarray(quarters()), "BMP")[:900], BROKEN),
}
"""Files with the reasons that may be given for refusing them."""
