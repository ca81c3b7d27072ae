from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from qdeploy.core.errors import ImageError
from qdeploy.core.image import MAX_PIXELS, decode

WHITE = (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF"])
def test_every_format_gives_the_same_flat_colour(kind: str) -> None:
    flat = Image.new("RGB", (9, 7), (200, 100, 50))
    pixels = np.asarray(decode(encoded(flat, kind), WHITE)).astype(int)
    assert pixels.shape == (7, 9, 3)
    assert np.abs(pixels - (200, 100, 50)).max() <= 4  # JPEG and WebP are lossy


def test_transparent_pixels_show_the_background() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 255, 0, 0))
    pixels = np.asarray(decode(encoded(image), (10, 20, 30)))
    assert pixels[0].tolist() == [[255, 0, 0], [10, 20, 30]]


def test_palette_with_transparent_entry_shows_the_background() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    pixels = np.asarray(decode(encoded(image, transparency=1), WHITE))
    assert pixels[0].tolist() == [[255, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGBA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    assert decode(encoded(Image.new("L", (4, 4), 255).convert(mode)), WHITE).mode == "RGB"


def test_sixteen_bit_grey_keeps_its_upper_bits() -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    pixels = np.asarray(decode(encoded(Image.fromarray(values)), WHITE))
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255]


VALUES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "s", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d"}
"""How each type of TIFF stores a value; a rational is two numbers."""


def exif_with(kind: int, orientation: int) -> bytes:
    """Return EXIF whose orientation is of a type of TIFF."""
    numbers = [orientation, 1] if kind in (5, 10) else [b"%d" % orientation] if kind in (2, 7) else [orientation]
    value = struct.pack("<" + VALUES[kind], *numbers)
    place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", 26)
    head = b"II*\0" + struct.pack("<IHHHI", 8, 1, 0x0112, kind, 1)
    return b"Exif\0\0" + head + place + bytes(4) + (value if len(value) > 4 else b"")


@pytest.mark.parametrize("kind", VALUES)
def test_an_orientation_of_any_type_is_applied_as_pillow_does(kind: int) -> None:
    image = Image.fromarray(np.arange(5 * 3 * 3, dtype=np.uint8).reshape(3, 5, 3))
    turned = 0
    for orientation in (0, 1, 3, 6, 8, 9):
        data = encoded(image, "PNG", exif=exif_with(kind, orientation))
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
        np.testing.assert_array_equal(np.asarray(decode(data, WHITE)), expected)
        turned += expected.shape == (5, 3, 3)
    assert turned == (0 if kind in (1, 2, 7) else 2)  # bytes and texts are no numbers to Pillow


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert decode(encoded(image, "JPEG", exif=exif), WHITE).size == (4, 8)


def test_damaged_exif_does_not_hide_the_pixels() -> None:
    image = Image.new("RGB", (8, 4), (200, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(encoded(image, "JPEG", exif=exif))
    start = data.index(b"Exif")
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(data)
        for at in rng.integers(start + 6, start + 32, 3):
            broken[at] = rng.integers(256)
        assert sorted(decode(bytes(broken), WHITE).size) == [4, 8]


@pytest.mark.parametrize("data", [b"", b"x", b"<html></html>", b"%PDF-1.4", b"GIF89a"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="not a readable"):
        decode(data, WHITE)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_every_truncation_is_refused(kind: str) -> None:
    rng = np.random.default_rng(0)
    data = encoded(Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)), kind)
    for end in range(0, len(data) - 24, 7):
        with pytest.raises(ImageError) as caught:
            decode(data[:end], WHITE)
        assert caught.value.reason in ("empty", "unsupported-format", "damaged", "truncated")


def test_a_bomb_is_refused_by_its_header() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    header = (12_000).to_bytes(4, "big") + (12_000).to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    assert MAX_PIXELS < 12_000**2
    with pytest.raises(ImageError, match="12000x12000 pixels"):
        decode(bomb, WHITE)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        decode(tmp_path / "none.png", WHITE)
    with pytest.raises(ImageError, match="is a folder"):
        decode(tmp_path, WHITE)


@pytest.mark.parametrize("kind", ["WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "nothing"])
def test_only_the_formats_that_are_taken_are_loaded(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "image"
    if kind == "nothing":
        file.write_bytes(b"nothing at all")
    else:
        Image.new("RGB", (8, 8)).save(file, kind)
    code = (
        "import sys; from pathlib import Path; from qdeploy.core.errors import ImageError; "
        "from qdeploy.core.image import decode\n"
        "try: decode(Path(sys.argv[1]), (0, 0, 0))\n"
        "except ImageError: pass\n"
        "print('PIL.SpiderImagePlugin' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
