"""A data set in memory: decoded pixels, labels and hashes, split so that no image is in two parts.

Array names: N images, S height and width.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import DataError, ImageError
from qdeploy.core.preprocessing import Preprocessing

SPLITS = ("train", "val", "test")

Progress = Callable[[int, int], None]
"""Called with the number of images read and their total."""


@dataclass(frozen=True)
class Record:
    """One labelled image that has not been decoded yet: a file, or grey pixels already in memory."""

    source: Path | NDArray[np.uint8]
    label: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a data set's images are. ``records`` has a key for every split the source itself defines."""

    name: str
    classes: tuple[str, ...]
    records: dict[str, list[Record]]
    problems: list[str] = field(default_factory=list)
    holdout: float = 0.15
    """Share of each class's training images that becomes each split the source does not define."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """The images of one split."""

    pixels: NDArray[np.uint8]
    """``[N, S, S, 3]``, RGB, preprocessed but not normalised."""
    labels: NDArray[np.int64]
    hashes: tuple[str, ...]
    """The first 16 hexadecimal digits of the SHA-256 of each decoded image."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: NDArray[np.int64]) -> Split:
        """Give the images at some positions."""
        return Split(pixels=self.pixels[index], labels=self.labels[index], hashes=tuple(self.hashes[i] for i in index))


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A whole data set; its three splits share no image."""

    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    splits: dict[str, Split]
    problems: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Hash of the classes and of every image with its split and label; independent of order and path."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for name in SPLITS:
            split = self.splits[name]
            for line in sorted(f"{name} {h} {k}" for h, k in zip(split.hashes, split.labels, strict=True)):
                digest.update(line.encode())
        return digest.hexdigest()


def read_source(source: Source, preprocessing: Preprocessing, seed: int, progress: Progress | None = None) -> Dataset:
    """Decode every image, drop the unreadable and the repeated, and complete the splits.

    Raises:
        DataError: If there are fewer than two classes or a class is left without images.
    """
    if len(source.classes) < 2:
        raise DataError(f"{source.name} has {len(source.classes)} class; a classifier needs at least 2 sub-folders")
    problems = list(source.problems)
    total = sum(len(r) for r in source.records.values())
    parts: dict[str, Split] = {}
    done = 0
    for name, records in source.records.items():
        parts[name] = _decode(records, preprocessing, problems, _offset(progress, done, total))
        done += len(records)
    splits = _complete(_without_repeats(parts, problems), source, problems, seed)
    _note_missing_classes(splits, source, problems)
    return Dataset(
        name=source.name,
        classes=source.classes,
        preprocessing=preprocessing,
        splits=splits,
        problems=tuple(problems),
    )


def _offset(progress: Progress | None, done: int, total: int) -> Callable[[int], None]:
    return lambda i: progress(done + i, total) if progress else None


def _decode(
    records: Sequence[Record], preprocessing: Preprocessing, problems: list[str], tick: Callable[[int], None]
) -> Split:
    size = preprocessing.size
    pixels = np.empty((len(records), size, size, 3), np.uint8)
    labels: list[int] = []
    hashes: list[str] = []
    for i, record in enumerate(records):
        try:
            image = preprocessing.open(record.source)
        except ImageError as error:
            problems.append(f"{record.source}: {error}")
            continue
        content = f"{image.size}".encode() + image.tobytes()
        pixels[len(labels)] = preprocessing.resize(image)
        labels.append(record.label)
        hashes.append(hashlib.sha256(content).hexdigest()[:16])
        if i % 64 == 0:
            tick(i)
    tick(len(records))
    return Split(pixels=pixels[: len(labels)], labels=np.asarray(labels, np.int64), hashes=tuple(hashes))


def _note_missing_classes(splits: dict[str, Split], source: Source, problems: list[str]) -> None:
    for name, split in splits.items():
        if len(split) == 0:
            raise DataError(f"{source.name} has no usable image in {name}{_because(problems)}")
        missing = [label for k, label in enumerate(source.classes) if not (split.labels == k).any()]
        if missing:
            problems.append(f"{name} has no image of {', '.join(missing)}")


def _because(problems: list[str]) -> str:
    return f" ({len(problems)} problem(s), e.g. {problems[0]})" if problems else ""


def _without_repeats(parts: dict[str, Split], problems: list[str]) -> dict[str, Split]:
    """Drop images seen before; test keeps its own, then val, then train, so that measurements stay honest."""
    seen: dict[str, tuple[str, int]] = {}
    repeats: Counter[str] = Counter()
    kept: dict[str, Split] = {}
    for name in [n for n in reversed(SPLITS) if n in parts]:
        split, index = parts[name], []
        for i, (digest, label) in enumerate(zip(split.hashes, split.labels.tolist(), strict=True)):
            if digest not in seen:
                seen[digest] = (name, label)
                index.append(i)
                continue
            first, first_label = seen[digest]
            same = "" if first_label == label else " under another label"
            repeats[f"of {name} repeat an image of {first}{same}"] += 1
        kept[name] = split.take(np.asarray(index, np.int64))
    problems += [f"{count} image(s) {what}; left out" for what, count in repeats.items()]
    return kept


def _complete(parts: dict[str, Split], source: Source, problems: list[str], seed: int) -> dict[str, Split]:
    """Cut the splits that the source does not define from its training images, class by class, seeded."""
    for k, name in enumerate(source.classes):
        if not (parts["train"].labels == k).any():
            raise DataError(f"class '{name}' of {source.name} has no usable training image{_because(problems)}")
    rng = np.random.default_rng(seed)
    splits = dict(parts)
    for name in SPLITS:
        if name not in splits:
            splits["train"], splits[name] = _cut(splits["train"], source, rng)
    return {name: splits[name] for name in SPLITS}


def _cut(train: Split, source: Source, rng: np.random.Generator) -> tuple[Split, Split]:
    chosen: list[NDArray[np.int64]] = []
    for k, name in enumerate(source.classes):
        members = rng.permutation(np.flatnonzero(train.labels == k))
        count = max(1, round(len(members) * source.holdout))
        if len(members) - count < 1:
            raise DataError(
                f"class '{name}' of {source.name} has too few images to keep some for validation and test; "
                "give at least 3, or the folders train/, val/ and test/"
            )
        chosen.append(members[:count])
    index = np.sort(np.concatenate(chosen))
    rest = np.setdiff1d(np.arange(len(train)), index)
    return train.take(rest), train.take(index)
