"""Decoding: from a source's records to one table of rows, on every core, in the source's order."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qdeploy.core.errors import PASSING, DataError, ImageError
from qdeploy.core.image_formats import FIRST_TAKEN, first_of
from qdeploy.core.machine import usable_cores
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.progress import Progress
from qdeploy.data.dataset import SPLITS, Dataset, Rows
from qdeploy.data.source import Record, Source
from qdeploy.data.splits import split_rows

BLOCK = 64
"""Images a thread decodes at a time."""
WORTH_A_THREAD_S = 0.0004
"""Seconds an image: below it threads wait for Python's lock and are slower than one.

Measured on 2 cores, images a second with 1 and 2 threads: 64x64 5,100 and 4,900; 224x224 1,200 and 1,950.
"""

ROWS = 512
"""Rows of an image that are hashed at a time."""

Decode = Callable[[int], str]
"""Decodes a record into its row and gives the image's hash; raises ImageError."""


def read_source(source: Source, preprocessing: Preprocessing, seed: int, progress: Progress | None = None) -> Dataset:
    """Decode every image into memory, drop the unreadable and the repeated, and complete the splits.

    Raises:
        DataError: If there are fewer than two classes or a class is left without images.
    """
    pixels = np.empty(shape_of(source, preprocessing), np.uint8)
    return read_rows(source, preprocessing, seed, pixels, progress=progress).dataset()


def shape_of(source: Source, preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """Return the shape of an array that holds every record's pixels."""
    return (sum(map(len, source.records.values())), preprocessing.size, preprocessing.size, 3)


def read_rows(
    source: Source,
    preprocessing: Preprocessing,
    seed: int,
    pixels: NDArray[np.uint8],
    *,
    known: Rows | None = None,
    progress: Progress | None = None,
) -> Rows:
    """Decode a source into a given array and bring its rows into the order of the splits.

    Args:
        source: What to decode.
        preprocessing: How images become rows.
        seed: Seed of the splits.
        pixels: ``shape_of(source)``; may be a memory map, so that a large set is never whole in memory.
        known: An older table; images with a key in it are copied and not decoded again.
        progress: Called with images done and their total.

    Raises:
        DataError: If there are fewer than two classes or a class is left without images.
    """
    if len(source.classes) < 2:
        raise DataError(f"{source.name} has {len(source.classes)} class; a classifier needs at least 2 sub-folders")
    records = [r for part in source.records.values() for r in part]
    labels = np.asarray([r.label for r in records], np.int64)
    keys = [r.key for r in records]
    problems = list(source.problems)
    several: dict[int, str] = {}
    decode = _decoder(records, keys, preprocessing, pixels, known, several)
    passing: list[str] = []
    hashes = _decode_all(records, decode, problems, passing, progress)
    problems += [f"{records[i].source}: {what}" for i, what in sorted(several.items())]
    rows = split_rows(_given(source, hashes), labels, hashes, source, problems, seed)
    order = _order(rows, hashes)
    _reorder(pixels, order)
    order = order[: sum(1 for h in hashes if h)]
    return Rows(
        name=source.name,
        classes=source.classes,
        preprocessing=preprocessing,
        problems=tuple(problems),
        pixels=pixels,
        labels=labels[order],
        hashes=np.asarray(hashes, "S16")[order],
        keys=np.asarray(keys, "S32")[order],
        counts=tuple(len(rows[name]) for name in SPLITS),
        passing=tuple(passing),
    )


def _decoder(
    records: list[Record],
    keys: list[str],
    preprocessing: Preprocessing,
    pixels: NDArray[np.uint8],
    known: Rows | None,
    several: dict[int, str],
) -> Decode:
    """Return what decodes a record; ``several`` receives what is said of files of several frames or pages."""
    frames_said = [p for p in known.problems if p.endswith(FIRST_TAKEN)] if known else []
    said = {place: what for place, _, what in (p.rpartition(": ") for p in frames_said)}
    old_rows = {k.decode(): i for i, k in enumerate(known.keys.tolist()) if k} if known else {}

    def decode(i: int) -> str:
        old = old_rows.get(keys[i])
        if known is not None and old is not None:
            pixels[i] = known.pixels[old]
            if what := said.get(str(records[i].source)):
                several[i] = what
            return str(known.hashes[old].decode())
        image = preprocessing.open(records[i].image())
        pixels[i] = preprocessing.resize(image)
        if (frames := image.info.get("frames", 1)) > 1:
            several[i] = first_of(frames)
        return image_hash(image)

    return decode


def image_hash_of(pixels: NDArray[np.uint8]) -> str:
    """Return the same of an RGB image's pixels ``[H, W, 3]``."""
    return image_hash(Image.fromarray(pixels))


def image_hash(image: Image.Image) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a decoded image: its size and its pixels."""
    digest = hashlib.sha256(f"{image.size}".encode())
    for top in range(0, image.height, ROWS):  # a large image is not copied as a whole
        digest.update(image.crop((0, top, image.width, min(image.height, top + ROWS))).tobytes())
    return digest.hexdigest()[:16]


def _decode_all(
    records: list[Record], decode: Decode, problems: list[str], passing: list[str], progress: Progress | None
) -> list[str]:
    """Return the hash of every record's image, or nothing for an unreadable one, which becomes a problem.

    ``passing`` receives the names of those that may be readable another time.
    """
    hashes: list[str] = []
    for done, answer in enumerate(_in_threads(decode, len(records))):
        if isinstance(answer, ImageError):
            source = records[done].source
            problems.append(f"{f'image {done}' if isinstance(source, np.ndarray) else source}: {answer}")
            if answer.reason in PASSING:
                passing.append(str(source))
        hashes.append("" if isinstance(answer, ImageError) else answer)
        if progress and (done % BLOCK == 0 or done + 1 == len(records)):
            progress(done + 1, len(records))
    return hashes


def _in_threads(decode: Decode, count: int) -> Iterator[str | ImageError]:
    """Decode block by block, on every core if images take long enough; answers come in order."""

    def block(start: int) -> list[str | ImageError]:
        answers: list[str | ImageError] = []
        for i in range(start, min(start + BLOCK, count)):
            try:
                answers.append(decode(i))
            except ImageError as error:
                answers.append(error)
        return answers

    start = time.perf_counter()
    yield from block(0)
    each_s = (time.perf_counter() - start) / max(1, min(BLOCK, count))
    pool = ThreadPoolExecutor(usable_cores() if each_s > WORTH_A_THREAD_S else 1)
    try:
        for answers in pool.map(block, range(BLOCK, count, BLOCK)):
            yield from answers
    finally:
        pool.shutdown(cancel_futures=True)  # at Ctrl-C: what has not begun is not begun


def _given(source: Source, hashes: list[str]) -> dict[str, NDArray[np.int64]]:
    """Return the readable rows of every split that the source defines."""
    given, start = {}, 0
    for name, part in source.records.items():
        rows = [i for i in range(start, start + len(part)) if hashes[i]]
        given[name] = np.asarray(rows, np.int64)
        start += len(part)
    return given


def _order(rows: dict[str, NDArray[np.int64]], hashes: list[str]) -> NDArray[np.int64]:
    """Return all rows in the order train, val, test, repeated, unreadable."""
    chosen = np.concatenate([rows[name] for name in SPLITS])
    rest = np.setdiff1d(np.arange(len(hashes)), chosen)
    readable = np.asarray([bool(hashes[i]) for i in rest.tolist()], bool)
    return np.concatenate([chosen, rest[readable], rest[~readable]])


def _reorder(pixels: NDArray[np.uint8], order: NDArray[np.int64]) -> None:
    """Move row ``order[i]`` to ``i`` for all ``i`` within the array, cycle by cycle: no second copy of the set."""
    places = order.tolist()
    for start in range(len(places)):
        if places[start] < 0:
            continue
        first, i = pixels[start].copy(), start
        while (origin := places[i]) != start:
            pixels[i] = pixels[origin]
            places[i], i = -1, origin
        pixels[i], places[i] = first, -1
