"""Fashion-MNIST in its four published files (MIT licence, Zalando SE)."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import DataError
from qdeploy.core.progress import Progress
from qdeploy.data.download import Checksum, fetch
from qdeploy.data.embedded import FASHION_CLASSES
from qdeploy.data.places import cache_folder, look_for
from qdeploy.data.source import Place, Reader, Record, Source

NAME = "fashion-mnist"
URL = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"
SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""SHA-256 of the uncompressed contents: Debian's package compresses the same contents differently."""
HOLDOUT = 1 / 30
"""2,000 of the 60,000 published training images are kept for validation."""
IMAGES = {"train": 58_000, "val": 2_000, "test": 10_000}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Folder of Debian's package dataset-fashion-mnist."""


def fashion_mnist_source(folder: Path) -> Source:
    """Return the full Fashion-MNIST: 58,000 training, 2,000 validation and 10,000 test images.

    Args:
        folder: Where the four published ``.gz`` files are.

    Raises:
        DataError: If a file is missing or damaged.
    """
    records = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        pixels = read_idx(folder / f"{stem}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{stem}-labels-idx1-ubyte.gz")
        if pixels.ndim != 3 or labels.shape != (len(pixels),) or (len(labels) and labels.max() >= len(FASHION_CLASSES)):
            raise DataError(
                f"{folder}: the {stem} files do not belong together: {pixels.shape} and {labels.shape}; "
                "delete them to fetch them again"
            )
        records[split] = [Record(p, int(k)) for p, k in zip(pixels, labels, strict=True)]
    return Source(name=NAME, classes=FASHION_CLASSES, records=records, holdout=HOLDOUT)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of unsigned bytes.

    Raises:
        DataError: If it is missing or damaged.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as gzip ({error}); delete it to fetch it again") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise DataError(f"{path} is not an IDX file of bytes (it starts with {data[:4].hex()}); delete it")
    rank = data[3]
    shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
    values = np.frombuffer(data, np.uint8, offset=min(len(data), 4 + 4 * rank))
    if values.size != np.prod(shape, dtype=np.int64):
        raise DataError(f"{path} is damaged: its header promises {shape}, it holds {values.size} values; delete it")
    return values.reshape(shape)


def has_fashion_mnist(folder: Path) -> bool:
    """Tell whether a folder holds the four published files."""
    return all(os.path.isfile(folder / name) for name in SHA256)


def local_folder() -> Path | None:
    """Find the four files on this machine."""
    return look_for(NAME, has_fashion_mnist, more=[DEBIAN])


def fetch_fashion_mnist(url: str = URL, progress: Progress | None = None) -> Path:
    """Download the four files into the cache; gives their folder.

    Raises:
        DataError: If one cannot be fetched or is not the published file.
    """
    root = cache_folder() / NAME
    for name, digest in SHA256.items():
        checksum = Checksum(kind="sha256", hex=digest, uncompressed=True)
        fetch(
            url + name, root / name, checksum, f"put the four files into ./data/{NAME} or give their folder", progress
        )
    return root


def _recognise(path: Path) -> Place | None:
    return _place(path.resolve()) if has_fashion_mnist(path) else None


def _find(progress: Progress | None) -> Place:
    return _place(local_folder() or fetch_fashion_mnist(progress=progress))


def _place(folder: Path) -> Place:
    return Place(
        name=NAME,
        path=folder,
        read=lambda: fashion_mnist_source(folder),
        files=tuple(folder / name for name in SHA256),
        holdout=HOLDOUT,
    )


READER = Reader(find=_find, recognise=_recognise, classes=len(FASHION_CLASSES), images=IMAGES)
