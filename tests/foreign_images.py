"""Image files as other people have them, made from a seed: each with the pixels that it shows, or to be refused.

The pixels come from numpy, by the rules in docs/checking.md, or, where a format is lossy, from plain Pillow; nothing of
qdeploy is used. Each file is small: there are several hundred.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.core.bad_images import Pixels, claims, encoded, png, stored_for, ycck

Values = NDArray[Any]


@dataclass(frozen=True)
class ForeignImage:
    """One file."""

    name: str
    """A file's name; its suffix may be wrong."""
    data: bytes
    pixels: Pixels | None
    """``[H, W, 3]``; None if it has to be refused."""
    frames: int = 1
    """Pictures in it, of which the first is meant; 2 of a GIF that moves."""


def foreign_images(seed: int = 0) -> Iterator[ForeignImage]:
    """Make all files of a seed."""
    rng = np.random.default_rng(seed)
    yield from _pngs(rng)
    yield from _tiffs(rng)
    yield from _foreign_tiffs(rng)
    yield from _pnms(rng)
    yield from _others(rng)
    yield from _jpegs(rng)
    yield from _turned(rng)
    yield from _several(rng)
    yield from _shapes(rng)
    yield from _broken(rng)
    yield from _nothing(rng)


def _noise(rng: np.random.Generator, *shape: int) -> Pixels:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def _rgb(grey: Values) -> Pixels:
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def _on_white(colour: Pixels, alpha: Values) -> Pixels:
    """Lay on white, as Pillow rounds it: see the tolerance of the tests."""
    share = alpha.astype(float)[..., None] / 255
    return np.rint(colour * share + 255 * (1 - share)).astype(np.uint8)


def _shown(data: bytes) -> Pixels:
    """Give what plain Pillow reads."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _png(values: Values, depth: int, colour: int, interlaced: bool = False, *extra: bytes) -> bytes:
    """Write a PNG of any bits, bands and order by hand."""
    height, width = values.shape[:2]
    steps = [(0, 0, 1, 1)]
    if interlaced:
        steps = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b""
    for top, left, down, right in steps:
        part = values[top::down, left::right]
        for row in part if part.size else []:
            if depth < 8:
                bits = (row[..., None] >> np.arange(depth - 1, -1, -1)) & 1
                rows += b"\0" + np.packbits(bits.reshape(-1).astype(np.uint8)).tobytes()
            else:
                rows += b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes()
    data = bytearray(png(width, height, depth, colour, rows, *extra))
    data[28] = interlaced
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def _pngs(rng: np.random.Generator) -> Iterator[ForeignImage]:
    for interlaced in (False, True):
        way = "interlaced " if interlaced else ""
        for height, width in ((9, 13), (1, 1), (17, 3)):
            size = f"{way}{width}x{height}"
            for depth in (1, 2, 4, 8, 16):
                grey = rng.integers(0, 1 << depth, (height, width))
                eight = grey >> 8 if depth == 16 else grey * 255 // ((1 << depth) - 1)
                yield ForeignImage(f"grey {depth} {size}.png", _png(grey, depth, 0, interlaced), _rgb(eight))
            for depth in (8, 16):
                wide = rng.integers(0, 1 << depth, (height, width, 4))
                high = (wide >> (depth - 8)).astype(np.uint8)
                colour = _png(wide[..., :3], depth, 2, interlaced)
                yield ForeignImage(f"colour {depth} {size}.png", colour, high[..., :3])
                alpha = _on_white(high[..., :3], high[..., 3])
                yield ForeignImage(f"colour and alpha {depth} {size}.png", _png(wide, depth, 6, interlaced), alpha)
                alpha = _on_white(_rgb(high[..., 0]), high[..., 1])
                two = _png(wide[..., :2], depth, 4, interlaced)
                yield ForeignImage(f"grey and alpha {depth} {size}.png", two, alpha)
            colours = _noise(rng, 4, 3)
            index = rng.integers(0, 4, (height, width))
            table = len(colours.tobytes()).to_bytes(4, "big") + b"PLTE" + colours.tobytes()
            table += zlib.crc32(table[4:]).to_bytes(4, "big")
            yield ForeignImage(f"palette {size}.png", _png(index, 2, 3, interlaced, table), colours[index])


def _tiffs(rng: np.random.Generator) -> Iterator[ForeignImage]:
    for packing in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        for big in (False, True):
            options: dict[str, Any] = {"compression": packing, "big_tiff": big}
            name = f"{packing or 'plain'}{' big' if big else ''}.tif"
            grey, colour = _noise(rng, 11, 15), _noise(rng, 11, 15, 4)
            deep = rng.integers(0, 65536, (11, 15), dtype=np.uint16)
            index = Image.fromarray(grey % 7).convert("P")
            colours = _noise(rng, 256, 3)
            index.putpalette(colours.tobytes())
            for kind, image, pixels in (
                ("1 bit", Image.fromarray(grey > 99), _rgb((grey > 99) * 255)),
                ("grey", Image.fromarray(grey), _rgb(grey)),
                ("grey 16", Image.fromarray(deep), _rgb(deep >> 8)),
                ("colour", Image.fromarray(colour[..., :3]), colour[..., :3]),
                ("colour and alpha", Image.fromarray(colour), _on_white(colour[..., :3], colour[..., 3])),
                ("palette", index, colours[np.asarray(index)]),
            ):
                yield ForeignImage(f"{kind} {name}", encoded(image, "TIFF", **options), pixels)
            ink = Image.fromarray(colour, "CMYK")
            data = encoded(ink, "TIFF", **options)
            yield ForeignImage(f"CMYK {name}", data, _shown(data))


def tiff(values: Values, order: str, sample_format: int = 1, photometric: int | None = None) -> bytes:
    """Write a TIFF of one plain strip by hand: any bits, bands, byte order and meaning."""
    bits = 8 * values.dtype.itemsize
    height, width = values.shape[:2]
    bands = 1 if values.ndim == 2 else values.shape[2]
    if photometric is None:
        photometric = 1 if bands < 3 else 2
    strip = values.astype(values.dtype.newbyteorder(order)).tobytes()  # type: ignore[arg-type]
    tags: dict[int, tuple[str, list[int]]] = {
        **{256: ("I", [width]), 257: ("I", [height]), 258: ("H", [bits] * bands), 259: ("H", [1])},
        **{262: ("H", [photometric]), 273: ("I", [0]), 277: ("H", [bands]), 278: ("I", [height])},
        **{279: ("I", [len(strip)]), 339: ("H", [sample_format] * bands)},
    }
    behind = 8 + 2 + 12 * len(tags) + 4
    more = b"".join(struct.pack(f"{order}{len(v)}{c}", *v) for c, v in tags.values() if len(v) > 2)
    tags[273] = ("I", [behind + len(more)])
    entries, used = b"", 0
    for tag, (code, value) in tags.items():
        packed = struct.pack(f"{order}{len(value)}{code}", *value)
        if len(value) > 2:
            packed, used = struct.pack(f"{order}I", behind + used), used + len(packed)
        entries += struct.pack(f"{order}HHI", tag, 3 if code == "H" else 4, len(value)) + packed.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    return head + entries + bytes(4) + more + strip


def _foreign_tiffs(rng: np.random.Generator) -> Iterator[ForeignImage]:
    for order, name in (("<", "little"), (">", "big")):
        deep = rng.integers(0, 65536, (6, 9, 3), dtype=np.uint16)
        grey, low = deep[..., 0], (deep[..., 0] >> 8).astype(np.uint8)
        yield ForeignImage(f"colour 16 {name}.tif", tiff(deep, order), (deep >> 8).astype(np.uint8))
        yield ForeignImage(f"grey 16 {name}.tif", tiff(grey, order), _rgb(grey >> 8))
        yield ForeignImage(f"12 bits in 16 {name}.tif", tiff(grey >> 4, order), _rgb(grey >> 12))
        yield ForeignImage(f"white is zero 8 {name}.tif", tiff(low, order, photometric=0), _rgb(255 - low))
        for kind, values, meaning in (
            ("signed 8", low.astype(np.int8), 2),
            ("signed 16", grey.astype(np.int16), 2),
            ("unsigned 32", grey.astype(np.uint32), 1),
            ("signed 32", grey.astype(np.int32), 2),
            ("float 32", grey.astype(np.float32), 3),
            ("float 64", grey.astype(np.float64), 3),
            ("five bands", _noise(rng, 6, 9, 5), 1),
            ("255 bands", _noise(rng, 6, 9, 255), 1),
        ):
            yield ForeignImage(f"{kind} {name}.tif", tiff(values, order, meaning), None)
    yield ForeignImage("white is zero 16.tif", tiff(grey, "<", photometric=0), _rgb((65535 - grey) >> 8))


def _pnms(rng: np.random.Generator) -> Iterator[ForeignImage]:
    for largest in (1, 15, 200, 255, 256, 1023, 4095, 65535):
        values = rng.integers(0, largest + 1, (7, 5, 3))
        exact = values / largest * 255 if largest < 256 else np.floor(np.rint(values / largest * 65535) / 256)
        eight = np.floor(exact + 0.5).astype(np.uint8)
        kind = "u1" if largest < 256 else ">u2"
        plain, grey = (" ".join(map(str, v.reshape(-1))).encode() for v in (values, values[..., 1]))
        size = b"# made by hand\n5 7\n%d\n" % largest
        yield ForeignImage(f"{largest}.ppm", b"P6\n" + size + values.astype(kind).tobytes(), eight)
        yield ForeignImage(
            f"{largest}.pgm", b"P5\n" + size + values[..., 1].astype(kind).tobytes(), _rgb(eight[..., 1])
        )
        yield ForeignImage(f"plain {largest}.ppm", b"P3\n" + size + b"# more\n" + plain, eight)
        yield ForeignImage(f"plain {largest}.pgm", b"P2\n" + size + grey + b"\n", _rgb(eight[..., 1]))
    bits = _noise(rng, 6, 11) > 127
    yield ForeignImage("bits.pbm", b"P4\n11 6\n" + np.packbits(bits, axis=1).tobytes(), _rgb(~bits * 255))
    text = "\n".join(" ".join(str(int(b)) for b in row) for row in bits).encode()
    yield ForeignImage("plain bits.pbm", b"P1\n11 6\n" + text, _rgb(~bits * 255))
    for name, data in (
        ("no largest value", b"P6\n2 2\n"),
        ("0 is the largest value", b"P5\n2 2\n0\n" + bytes(4)),
        ("65536 is the largest value", b"P5\n2 2\n65536\n" + bytes(12)),
        ("no pixels", b"P5\n0 2\n255\n"),
        ("a word", b"P2\n2 2\n255\n1 2 x 4"),
        ("a negative value", b"P2\n2 2\n255\n1 2 -3 4"),
        ("too few words", b"P3\n2 2\n255\n1 2 3"),
        ("a bomb", b"P5\n60000 60000\n255\n"),
        ("another bomb", b"P6\n16000 16000\n65535\n"),
        ("floats", b"Pf\n2 2\n-1.0\n" + bytes(16)),
    ):
        yield ForeignImage(f"{name}.ppm", data, None)


def _others(rng: np.random.Generator) -> Iterator[ForeignImage]:
    """Lossless WebP, BMP, GIF, and AVIF by Pillow."""
    for height, width in ((10, 14), (1, 1), (3, 40)):
        size = f"{width}x{height}"
        colour = _noise(rng, height, width, 4)
        grey = colour[..., 0]
        white = _on_white(colour[..., :3], colour[..., 3])
        for kind, image, pixels in (
            ("colour", Image.fromarray(colour[..., :3]), colour[..., :3]),
            ("colour and alpha", Image.fromarray(colour), white),
        ):
            webp = encoded(image, "WEBP", lossless=True, exact=True)
            yield ForeignImage(f"{kind} {size}.webp", webp, pixels)
        for kind, image, pixels in (
            ("1 bit", Image.fromarray(grey > 99), _rgb((grey > 99) * 255)),
            ("grey", Image.fromarray(grey), _rgb(grey)),
            ("colour", Image.fromarray(colour[..., :3]), colour[..., :3]),
        ):
            yield ForeignImage(f"{kind} {size}.bmp", encoded(image, "BMP"), pixels)
            if kind != "colour":
                yield ForeignImage(f"{kind} {size}.gif", encoded(image, "GIF"), pixels)
        few = _noise(rng, 5, 3)
        index = rng.integers(0, 5, (height, width)).astype(np.uint8)
        palette = Image.fromarray(index).convert("P")
        palette.putpalette(few.tobytes())
        for kind in ("GIF", "BMP"):
            for interlace in (0, 1):
                data = encoded(palette, kind, interlace=interlace)
                yield ForeignImage(f"palette {interlace} {size}.{kind.lower()}", data, few[np.asarray(palette)])
        clear = few[index].copy()
        clear[index == 2] = 255
        yield ForeignImage(f"transparent {size}.gif", encoded(palette, "GIF", transparency=2), clear)
        avif = encoded(Image.fromarray(colour[..., :3]), "AVIF", quality=90)
        yield ForeignImage(f"colour {size}.avif", avif, _shown(avif))


def _jpegs(rng: np.random.Generator) -> Iterator[ForeignImage]:
    soft = np.asarray(Image.fromarray(_noise(rng, 6, 8, 3)).resize((40, 30)))
    for quality in (5, 60, 100):
        for sampling in (0, 1, 2):
            for progressive in (False, True):
                options = {"quality": quality, "subsampling": sampling, "progressive": progressive}
                data = encoded(Image.fromarray(soft), "JPEG", **options)
                name = f"{quality} {sampling}{' progressive' if progressive else ''}"
                yield ForeignImage(f"{name}.jpg", data, _shown(data))
    for name, image, more in (
        ("grey.jpe", Image.fromarray(soft[..., 0]), {}),
        ("CMYK.jpeg", Image.fromarray(soft).convert("CMYK"), {}),
        ("profile.jfif", Image.fromarray(soft), {"icc_profile": rng.bytes(3000)}),
        ("restarts.jpg", Image.fromarray(soft), {"restart_marker_blocks": 2}),
        ("comment.jpg", Image.fromarray(soft), {"comment": b"\x1b[31m" * 100}),
    ):
        data = encoded(image, "JPEG", **more)
        yield ForeignImage(name, data, _shown(data))
    inks = ycck((200, 40, 30))
    yield ForeignImage("YCCK.jpg", inks, _shown(inks))
    twelve = bytearray(encoded(Image.fromarray(soft), "JPEG"))
    twelve[twelve.index(b"\xff\xc0") + 4] = 12
    yield ForeignImage("12 bits.jpg", bytes(twelve), None)


def _turned(rng: np.random.Generator) -> Iterator[ForeignImage]:
    """Each of the eight orientations, in every format that has them."""
    upright = np.asarray(Image.fromarray(_noise(rng, 3, 4, 3)).resize((32, 24)))
    for k in range(1, 9):
        stored = Image.fromarray(stored_for(k, upright))
        exif = Image.Exif()
        exif[0x0112] = k
        for kind in ("PNG", "TIFF", "WEBP"):
            options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
            yield ForeignImage(f"turned {k}.{kind.lower()}", encoded(stored, kind, exif=exif, **options), upright)
        yield ForeignImage(f"turned {k} lzw.tif", encoded(stored, "TIFF", exif=exif, compression="tiff_lzw"), upright)
        for kind in ("JPEG", "AVIF"):
            data = encoded(stored, kind, exif=exif, quality=95)
            shown = _upright(k, _shown(encoded(stored, kind, quality=95)))
            yield ForeignImage(f"turned {k}.{kind.lower()}", data, shown)
    for k in (0, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = k
        data = encoded(Image.fromarray(upright), "PNG", exif=exif)
        yield ForeignImage(f"turned {k}, which is none.png", data, upright)


def _upright(orientation: int, stored: Pixels) -> Pixels:
    """Undo ``stored_for``: the quarter turns undo each other, all others themselves."""
    return stored_for({6: 8, 8: 6}.get(orientation, orientation), stored)


def _several(rng: np.random.Generator) -> Iterator[ForeignImage]:
    pages = [_noise(rng, 8, 8) for _ in range(5)]
    first, *later = map(Image.fromarray, pages)
    for kind, count in (("GIF", 2), ("TIFF", 5), ("PNG", 5), ("WEBP", 5)):
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(first, kind, save_all=True, append_images=later, **options)
        yield ForeignImage(f"several.{kind.lower()}", data, _rgb(pages[0]), count)
    big = encoded(first, "TIFF", save_all=True, append_images=later, big_tiff=True, compression="tiff_lzw")
    yield ForeignImage("several big.tif", big, _rgb(pages[0]), 5)
    for kind in ("MPO", "AVIF"):
        images = [Image.fromarray(_rgb(p)) for p in pages]
        data = encoded(images[0], kind, save_all=True, append_images=images[1:])
        yield ForeignImage(f"several.{kind.lower()}", data, _shown(data), 5)
    loop = bytearray(encoded(first, "TIFF"))
    (at,) = struct.unpack_from("<I", loop, 4)
    (entries,) = struct.unpack_from("<H", loop, at)
    struct.pack_into("<I", loop, at + 2 + 12 * entries, at)
    yield ForeignImage("pages in a circle.tif", bytes(loop), _rgb(pages[0]))
    twice = encoded(first, "TIFF", save_all=True, append_images=later)
    yield ForeignImage("pages cut off.tif", twice[: len(twice) * 9 // 10], _rgb(pages[0]), 4)


def _shapes(rng: np.random.Generator) -> Iterator[ForeignImage]:
    """Long and thin files, and names that promise something else."""
    for kind in ("PNG", "TIFF", "BMP", "PPM", "GIF"):
        for width, height in ((1, 5000), (5000, 1)):
            grey = _noise(rng, height, width)
            yield ForeignImage(f"{width}x{height}.{kind.lower()}", encoded(Image.fromarray(grey), kind), _rgb(grey))
    kinds = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
    for i, kind in enumerate(kinds):
        data = encoded(Image.fromarray(_rgb(_noise(rng, 9, 9))), kind)
        yield ForeignImage(f"a {kind} named.{kinds[(i + 1) % len(kinds)].lower()}", data, _shown(data))
        yield ForeignImage(f"a {kind} without suffix", data, _shown(data))


def _broken(rng: np.random.Generator) -> Iterator[ForeignImage]:
    noise = Image.fromarray(_noise(rng, 40, 50, 3))
    kinds: dict[str, dict[str, Any]] = {k: {} for k in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")}
    whole = {k: encoded(noise, k, **o) for k, o in kinds.items()}
    for packing in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        whole[packing] = encoded(noise, "TIFF", compression=packing)
    for kind, data in whole.items():
        suffix = kind.lower() if kind in kinds else "tif"
        for percent in (2, 10, 30, 50, 70, 90):
            cut = data[: len(data) * percent // 100]
            yield ForeignImage(f"{kind} cut at {percent} %.{suffix}", cut, None)
        yield ForeignImage(f"{kind} with zeros at its beginning.{suffix}", bytes(16) + data[16:], None)
        if kind in ("PNG", "AVIF"):  # a WebP has no checksum
            yield ForeignImage(f"{kind} with zeros behind its mark.{suffix}", data[:32] + bytes(len(data) - 32), None)
    for kind in ("PNG", "WEBP", "BMP", "JPEG"):
        size = (16_383, 16_383) if kind == "WEBP" else (20_000, 20_000)
        yield ForeignImage(f"a bomb.{kind.lower()}", claims(*size, kind), None)
    huge = bytearray(encoded(Image.new("L", (8, 8)), "GIF"))
    huge[6:10] = b"\xff" * 4
    yield ForeignImage("a bomb.gif", bytes(huge), None)
    for width, height in ((50_000, 50_000), (17_000, 1)):
        wide = bytearray(tiff(np.zeros((2, 2), np.uint8), "<"))
        struct.pack_into("<I", wide, 8 + 2 + 8, width)
        struct.pack_into("<I", wide, 8 + 2 + 12 + 8, height)
        yield ForeignImage(f"a bomb {width}x{height}.tif", bytes(wide), None)


def _nothing(rng: np.random.Generator) -> Iterator[ForeignImage]:
    texts = {
        "empty": b"",
        "one zero": b"\0",
        "zeros": bytes(4096),
        "noise": rng.bytes(4096),
        "text": b"This is no image.\n",
        "a text that begins like a BMP": b"BMW, Audi and others\n" * 9,
        "a text that begins like a PBM": b"P1 is the first paragraph\n" * 9,
        "a page": b"<!DOCTYPE html><html><body>404</body></html>",
        "a drawing": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "a document": b"%PDF-1.7\n",
        "PostScript": b"%!PS-Adobe-3.0\n",
        "a sound": b"RIFF\x24\0\0\0WAVEfmt " + bytes(40),
        "a film": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(64),
        "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64),
        "an archive": b"PK\3\4" + bytes(60),
        "an icon": encoded(Image.new("RGB", (16, 16)), "ICO"),
        "a PSD": b"8BPS\0\1" + bytes(60),
        "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60),
        "a link to git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
        "base64": b"/9j/4AAQSkZJRgABAQAAAQABAAD",
    }
    for i, (name, data) in enumerate(texts.items()):
        yield ForeignImage(f"{name}.{('png', 'jpg', 'tif', 'gif', 'ppm', 'avif')[i % 6]}", data, None)
