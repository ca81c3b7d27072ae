"""Labelled images batch by batch, for measuring a finished model: a split as training cuts it, or all there is.

Array names: B images of a batch, S height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import DataError, ImageError, near_miss
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.catalog import find_place, load_dataset
from qdeploy.data.dataset import SPLITS, Dataset
from qdeploy.data.reading import image_hash
from qdeploy.data.source import Progress, Record, Source

ALL = "all"
CHOICES = (*SPLITS, ALL)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some images in the data set's order."""

    pixels: NDArray[np.uint8]
    """``[B, S, S, 3]``"""
    labels: NDArray[np.int64]
    """Positions in the data set's classes."""
    names: tuple[str, ...]
    """Paths; data set, split and number where an image is no file of its own."""
    hashes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """What a model is measured on."""

    name: str
    split: str
    classes: tuple[str, ...]
    count: int
    """Images at most; unreadable ones of ``all`` are left out while they stream."""
    sha256: str | None
    """Of the whole data set; None for ``all``."""
    batches: Callable[[int], Iterator[Batch]]
    """Given a batch size, streams the images."""
    notes: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)
    """Unreadable images of ``all`` are added while they stream."""


def labelled_images(
    data: str, split: str, rules: Preprocessing, progress: Progress | None = None, *, names: bool = False
) -> LabelledImages:
    """Find the images to measure on.

    Args:
        data: As for ``load_dataset``.
        split: train, val or test as training cuts them, repeats dropped; or ``all``: every image as it is.
        rules: How images become inputs.
        progress: Called with images decoded and their total, while a split is read.
        names: Whether the images of a split are named by their paths, which lists the data set once more.

    Raises:
        DataError: If there is no such data or split.
    """
    if split not in CHOICES:
        raise DataError(f"there is no split '{split}'{near_miss(split, CHOICES)}; known: {', '.join(CHOICES)}")
    if split == ALL:
        return _everything(find_place(data).read(), rules)
    dataset = load_dataset(data, rules, progress)
    return _one_split(dataset, split, find_place(data).read() if names else None)


def _one_split(dataset: Dataset, split: str, source: Source | None) -> LabelledImages:
    images = dataset.splits[split]
    paths = {r.key: str(r.source) for part in source.records.values() for r in part if r.key} if source else {}
    places = [paths.get(key, f"{dataset.name}/{split}/{i}") for i, key in enumerate(images.keys)]

    def batches(size: int) -> Iterator[Batch]:
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            yield Batch(
                pixels=np.asarray(images.pixels[part]),
                labels=images.labels[part],
                names=tuple(places[part]),
                hashes=images.hashes[part],
            )

    return LabelledImages(
        name=dataset.name,
        split=split,
        classes=dataset.classes,
        count=len(images),
        sha256=dataset.sha256,
        batches=batches,
        notes=dataset.notes,
        problems=list(dataset.problems),
    )


def _everything(source: Source, rules: Preprocessing) -> LabelledImages:
    records = [(f"{source.name}/{split}/{i}", r) for split, part in source.records.items() for i, r in enumerate(part)]
    problems = list(source.problems)

    def batches(size: int) -> Iterator[Batch]:
        for start in range(0, len(records), size):
            batch = _decoded(records[start : start + size], rules, problems)
            if batch is not None:
                yield batch

    return LabelledImages(
        name=source.name,
        split=ALL,
        classes=source.classes,
        count=len(records),
        sha256=None,
        batches=batches,
        problems=problems,
    )


def _decoded(records: list[tuple[str, Record]], rules: Preprocessing, problems: list[str]) -> Batch | None:
    """Decode some records; None if none is readable."""
    pixels, labels, names, hashes = [], [], [], []
    for place, record in records:
        name = place if isinstance(record.source, np.ndarray) else str(record.source)
        try:
            image = rules.open(record.image())
        except ImageError as error:
            problems.append(f"{name}: {error}")
            continue
        pixels.append(rules.resize(image))
        labels.append(record.label)
        names.append(name)
        hashes.append(image_hash(image))
    if not pixels:
        return None
    return Batch(pixels=np.stack(pixels), labels=np.asarray(labels), names=tuple(names), hashes=tuple(hashes))
