"""A decoded data set: pixels, labels and hashes, split so that no image is in two parts.

Array names: N images, S height and width.
"""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.image_formats import foreign_words, without_foreign
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.words import counted

GENERATED = "generated"
"""Name of the data set of a model that was made without data."""
SPLITS = ("train", "val", "test")
SHOWN_PROBLEMS = 3


@dataclass(frozen=True, kw_only=True)
class Split:
    """The images of one split."""

    pixels: NDArray[np.uint8]
    """``[N, S, S, 3]``, RGB, preprocessed but not normalised; read from the cache's file when touched."""
    labels: NDArray[np.int64]
    hashes: tuple[str, ...]
    """The first 16 hexadecimal digits of the SHA-256 of each decoded image."""
    keys: tuple[str, ...] = ()
    """Key of each image's record, see ``Record.key``; may be left out."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: NDArray[np.int64]) -> Split:
        """Return the images at some positions."""
        hashes, keys = (tuple(words[i] for i in index) if words else () for words in (self.hashes, self.keys))
        return Split(pixels=self.pixels[index], labels=self.labels[index], hashes=hashes, keys=keys)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A whole data set; its three splits share no image."""

    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    splits: dict[str, Split]
    problems: tuple[str, ...]
    """What is wrong with the data: the same at every load."""
    notes: tuple[str, ...] = ()
    """What happened at this load and belongs on stderr: a cache that was damaged or could not be written."""
    cache: Path | None = None
    """The folder with the decoded images, if they are kept."""
    source: str = ""
    """The name or path that it was asked for by."""
    generated: bool = False
    """Whether a program made the images: their labels mean nothing."""

    def problem_notes(self) -> tuple[str, ...]:
        """Return what to tell where the data are only used: the first problems, and how many there are."""
        count = len(self.problems)
        if not count:
            return ()
        images, foreign = without_foreign(self.problems)
        said = images[:SHOWN_PROBLEMS]
        if len(images) > SHOWN_PROBLEMS:
            said.append(f"and {len(images) - SHOWN_PROBLEMS:,} more")
        if foreign:
            said.append(foreign_words(foreign))
        listing = f"`qdeploy data {shlex.quote(self.source)}` lists them"
        return (f"{counted(count, 'problem')} with the data: {'; '.join(said)}; {listing}",)

    @property
    def sha256(self) -> str:
        """Hash of the classes and of every image with its split and label; independent of order and path."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for name in SPLITS:
            split = self.splits[name]
            for line in sorted(f"{name} {h} {k}" for h, k in zip(split.hashes, split.labels, strict=True)):
                digest.update(line.encode())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Every image that was decoded, in one table; what the cache keeps.

    The rows of train come first, then val, test, and the repeated images that no split has. ``pixels`` may have
    unused rows behind them: those of unreadable images.
    """

    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    problems: tuple[str, ...]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    hashes: NDArray[np.bytes_]
    keys: NDArray[np.bytes_]
    """Keys of the records; see ``Record.key``."""
    counts: tuple[int, ...]
    """Rows of train, val and test."""
    passing: tuple[str, ...] = ()
    """Images that could not be read for a reason of the moment (``core.errors.PASSING``): they are tried again."""

    def dataset(self, notes: tuple[str, ...] = (), cache: Path | None = None) -> Dataset:
        """Cut the splits out; they share the table's memory."""
        ends = np.cumsum(self.counts).tolist()
        hashes, keys = ([w.decode() for w in words[: ends[-1]].tolist()] for words in (self.hashes, self.keys))
        splits = {
            name: Split(
                pixels=self.pixels[a:b], labels=self.labels[a:b], hashes=tuple(hashes[a:b]), keys=tuple(keys[a:b])
            )
            for name, a, b in zip(SPLITS, [0, *ends], ends, strict=False)
        }
        return Dataset(
            name=self.name,
            classes=self.classes,
            preprocessing=self.preprocessing,
            splits=splits,
            problems=self.problems,
            notes=notes,
            cache=cache,
        )
