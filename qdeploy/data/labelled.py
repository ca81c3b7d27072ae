"""Labelled images batch by batch, for measuring a finished model: a split as training cuts it, or all there is.

A model's labels and a data set's classes are matched by name.

Array names: B images of a batch, S height and width.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import DataError, ImageError, near_miss
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.progress import Progress
from qdeploy.data.catalog import find_place, load_dataset
from qdeploy.data.dataset import SPLITS, Dataset
from qdeploy.data.reading import image_hash
from qdeploy.data.source import Record, Source

ALL = "all"
CHOICES = (*SPLITS, ALL)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some images in the data set's order."""

    pixels: NDArray[np.uint8]
    """``[B, S, S, 3]``"""
    labels: NDArray[np.int64]
    """``[B]``, positions in the model's labels."""
    names: tuple[str, ...]
    """Paths; data set, split and number where an image is no file of its own."""
    hashes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """What a model is measured on."""

    name: str
    split: str
    count: int
    """Largest number of images; unreadable ones of ``all`` are left out while they stream."""
    sha256: str | None
    """Content hash of the whole data set; None for ``all``."""
    batches: Callable[[int], Iterator[Batch]]
    """Returns the images as batches of a given size."""
    notes: tuple[str, ...]
    """What a reader of the numbers has to know."""
    problems: list[str] = field(default_factory=list)
    """Unreadable images of ``all`` are added while they stream."""


def labelled_images(
    data: str, split: str, rules: Preprocessing, labels: tuple[str, ...], progress: Progress | None = None
) -> LabelledImages:
    """Find the images to measure a model on.

    Args:
        data: Name, folder or archive of a data set.
        split: train, val or test as training cuts them, repeats dropped; or ``all``: every image as it is.
        rules: How images become the model's inputs.
        labels: The model's.
        progress: Called with images decoded and their total, while a split is read.

    Raises:
        DataError: If there is no such data or split, or a class is none of the labels.
    """
    if split not in CHOICES:
        raise DataError(f"there is no split '{split}'{near_miss(split, CHOICES)}; known: {', '.join(CHOICES)}")
    source = find_place(data).read()
    index, notes = _matched(source, labels)
    if split == ALL:
        return _everything(source, rules, index, notes)
    return _one_split(load_dataset(data, rules, progress), split, source, index, notes)


def image_names(dataset: Dataset, data: str) -> list[str]:
    """Return the path of each image of train, val and test; data set, split and number where it is no file of its own.

    Args:
        dataset: The images.
        data: Where the data set was loaded from.
    """
    source = find_place(data).read()
    return [name for split in SPLITS for name in _names(dataset, split, source)]


def _names(dataset: Dataset, split: str, source: Source) -> list[str]:
    paths = {r.key: str(r.source) for part in source.records.values() for r in part if r.key}
    return [paths.get(key, f"{dataset.name}/{split}/{i}") for i, key in enumerate(dataset.splits[split].keys)]


def _matched(source: Source, labels: tuple[str, ...]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Find each class's position in a model's labels, and say if the order differs or labels have no class."""
    name = source.name
    by_form = {unicodedata.normalize("NFC", label): label for label in labels}  # as folders' names are read
    classes = tuple(c if c in labels else by_form.get(c, c) for c in source.classes)
    foreign = [c for c in classes if c not in labels]
    if foreign:
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        known = ", ".join(labels[:3]) + (", ..." if len(labels) > 3 else "")
        raise DataError(
            f"{name} has the class '{foreign[0]}'{more} that the model does not know{near_miss(foreign[0], labels)}; "
            f"its {len(labels)} labels are {known}; give data of the model's classes"
        )
    index = np.asarray([labels.index(c) for c in classes], np.int64)
    notes = []
    missing = [label for label in labels if label not in classes]
    if missing:
        notes.append(f"{len(missing)} of the model's {len(labels)} labels have no images: {', '.join(missing)}")
    if (np.diff(index) < 0).any():
        notes.append(f"{name} has its classes in another order than the model its labels; they were matched by name")
    return index, tuple(notes)


def _one_split(
    dataset: Dataset, split: str, source: Source, index: NDArray[np.int64], notes: tuple[str, ...]
) -> LabelledImages:
    images = dataset.splits[split]
    places = _names(dataset, split, source)

    def batches(size: int) -> Iterator[Batch]:
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            yield Batch(
                pixels=np.asarray(images.pixels[part]),
                labels=index[images.labels[part]],
                names=tuple(places[part]),
                hashes=images.hashes[part],
            )

    return LabelledImages(
        name=dataset.name,
        split=split,
        count=len(images),
        sha256=dataset.sha256,
        batches=batches,
        notes=(*dataset.notes, *notes),
        problems=list(dataset.problems),
    )


def _everything(
    source: Source, rules: Preprocessing, index: NDArray[np.int64], notes: tuple[str, ...]
) -> LabelledImages:
    records = [(f"{source.name}/{split}/{i}", r) for split, part in source.records.items() for i, r in enumerate(part)]
    problems = list(source.problems)

    def batches(size: int) -> Iterator[Batch]:
        for start in range(0, len(records), size):
            batch = _decoded(records[start : start + size], rules, index, problems)
            if batch is not None:
                yield batch

    return LabelledImages(
        name=source.name,
        split=ALL,
        count=len(records),
        sha256=None,
        batches=batches,
        notes=notes,
        problems=problems,
    )


def _decoded(
    records: list[tuple[str, Record]], rules: Preprocessing, index: NDArray[np.int64], problems: list[str]
) -> Batch | None:
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
    return Batch(pixels=np.stack(pixels), labels=index[labels], names=tuple(names), hashes=tuple(hashes))
