"""Small files that ask for much work, and memory that is too little for one image."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qdeploy.core.errors import ImageError
from qdeploy.core.image import decode
from qdeploy.core.image_bounds import MOST_BLOCKS, MOST_CHUNKS, MOST_SCANNED, MOST_SEGMENTS, MOST_TAGS

WHITE = (255, 255, 255)
ROOT = Path(__file__).parents[2]


def encoded(kind: str, side: int = 16, mode: str = "RGB", **options: object) -> bytes:
    data = io.BytesIO()
    Image.new(mode, (side, side), 90 if mode == "L" else (90, 100, 110)[: len(mode)]).save(data, kind, **options)
    return data.getvalue()


def with_scans(data: bytes, count: int) -> bytes:
    """Repeat the last scan of a JPEG until it has so many."""
    more = count - data.count(b"\xff\xda")
    return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * more + data[-2:]


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def without_interleaving(side: int) -> bytes:
    """A sequential JPEG of three scans, one for each colour: each of one component of the others' tables."""
    grey = encoded("JPEG", side, "L")
    frame = grey.index(b"\xff\xc0")
    scan = grey.index(b"\xff\xda")
    entropy = grey[scan + 10 : -2]
    sizes = grey[frame + 5 : frame + 9]
    head = b"\xff\xc0\0\x11\x08" + sizes + b"\x03" + b"".join(bytes((i, 0x11, 0)) for i in (1, 2, 3))
    scans = b"".join(b"\xff\xda\0\x08\x01" + bytes((i, 0)) + b"\0\x3f\0" + entropy for i in (1, 2, 3))
    length = int.from_bytes(grey[frame + 2 : frame + 4], "big") + 2
    return grey[:frame] + head + grey[frame + length : scan] + scans + b"\xff\xd9"


def refusal(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, WHITE)
    return caught.value


@pytest.mark.parametrize("data", [encoded("JPEG", 2000, progressive=True), without_interleaving(2000)])
def test_scans_are_counted_before_they_are_decoded(data: bytes) -> None:
    assert decode(data, WHITE).size == (2000, 2000)
    most = MOST_SCANNED // 2000**2
    error = refusal(with_scans(data, most + 1))
    assert error.reason == "damaged"
    assert f"goes over its 2000x2000 pixels {most + 1} times" in str(error)
    assert decode(with_scans(data, 24), WHITE).size == (2000, 2000)


def test_a_large_progressive_image_of_usual_scans_is_taken() -> None:
    """The largest image may have 25 scans; libjpeg writes 10, mozjpeg 8 to 17."""
    assert MOST_SCANNED // 64_000_000 == 25


def parts(kind: str, count: int) -> bytes:
    """Return an image of so many segments, chunks, blocks or tags more than usual."""
    data = encoded(kind, mode="L" if kind == "GIF" else "RGB")
    if kind == "JPEG":
        return data[:2] + b"\xff\xfe\0\2" * count + data[2:]
    if kind == "PNG":
        return data[:33] + chunk(b"teXt") * count + data[33:]
    if kind == "GIF":
        at = data.index(b",", 13)
        return data[:at] + b"!\xfe" + b"\1a" * count + b"\0" + data[at:]
    tags = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 16, 279: 256}
    entries = [(tag, 4, value) for tag, value in tags.items()] + [(60000 + i % 5000, 4, 0) for i in range(count)]
    head = b"II*\0" + struct.pack("<I", 8 + 256) + bytes(256)
    return (
        head
        + struct.pack("<H", len(entries))
        + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in entries)
        + bytes(4)
    )


MOST = {"JPEG": MOST_SEGMENTS, "PNG": MOST_CHUNKS, "GIF": MOST_BLOCKS, "TIFF": MOST_TAGS}


@pytest.mark.parametrize("kind", MOST)
def test_parts_are_counted_before_they_are_read(kind: str) -> None:
    assert decode(parts(kind, MOST[kind] // 8), WHITE).size == (16, 16)
    error = refusal(parts(kind, MOST[kind] + 1))
    assert error.reason == "damaged"
    assert "as no sound image has" in str(error)


def test_junk_between_segments_has_an_end() -> None:
    data = encoded("JPEG")
    assert decode(data[:2] + b"\xff" * 1000 + data[2:], WHITE).size == (16, 16)
    assert refusal(data[:2] + bytes(1 << 20) + data[2:]).reason == "damaged"


def test_a_webp_of_too_many_pixels_is_refused_before_its_decoder_takes_memory() -> None:
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16382).to_bytes(3, "little") * 2
    assert refusal(b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body + bytes(64)).reason == "too-many-pixels"
    for options in ({"lossless": True}, {}, {"exif": b"Exif\0\0II*\0"}):
        assert decode(encoded("WEBP", 33, **options), WHITE).size == (33, 33)


def test_transparency_of_large_images_is_laid_on_by_rows() -> None:
    """Composited in parts as in one: a palette's transparent colour, too."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2100, 600, 4), np.uint8)
    image = Image.fromarray(pixels)
    data = io.BytesIO()
    image.save(data, "PNG")
    expected = Image.alpha_composite(Image.new("RGBA", image.size, (*WHITE, 255)), image).convert("RGB")
    assert decode(data.getvalue(), WHITE).tobytes() == expected.tobytes()


LITTLE_MEMORY = """
import json, resource, sys
from pathlib import Path
import qdeploy
from qdeploy.runtime.predict import predict_files
good, *large = sys.argv[1:]
classifier = qdeploy.load()
classifier(good), [classifier.card.preprocessing.open(Path(p)) for p in large[1:]]
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + 30_000_000
resource.setrlimit(resource.RLIMIT_AS, (most, most))
answers = predict_files(classifier, [good, *large, good], batch_size=9)
print(json.dumps([a.prediction.label if a.prediction else a.reason for a in answers]))
"""


def test_an_image_that_memory_is_too_little_for_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    side = 6000  # 36 million pixels: 144 MB as RGB
    (tmp_path / "a.png").write_bytes(encoded("PNG", side, "L", compress_level=1))
    (tmp_path / "b.jpg").write_bytes(encoded("JPEG", side, "L", progressive=True))
    good = ROOT / "examples" / "bag.png"
    large = [str(tmp_path / "a.png"), str(tmp_path / "b.jpg")]
    command = [sys.executable, "-c", LITTLE_MEMORY, str(good), *large]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["Bag", "out-of-memory", "out-of-memory", "Bag"]
