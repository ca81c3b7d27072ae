"""Published data sets in their published files: read from a local folder, or fetched once and checked."""

from __future__ import annotations

import gzip
import hashlib
import os
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import DataError
from qdeploy.core.files import write_bytes
from qdeploy.data.dataset import Record, Source
from qdeploy.data.embedded import FASHION_CLASSES

FASHION_URL = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"
FASHION_SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Of the uncompressed contents: Debian's package compresses the same contents differently."""
FASHION_VAL_SHARE = 1 / 30
"""2,000 of the 60,000 published training images are kept for validation."""


def cache_folder() -> Path:
    """Give the folder for downloads: ``$QDEPLOY_CACHE``, or ``qdeploy`` in the user's cache folder."""
    own = os.environ.get("QDEPLOY_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qdeploy"


def fashion_mnist_source(folder: Path | None = None, url: str = FASHION_URL) -> Source:
    """Give the full Fashion-MNIST: 58,000 training, 2,000 validation and 10,000 test images.

    Args:
        folder: Where the four published ``.gz`` files are. By default they are looked for in
            ``./data/fashion-mnist``, ``./fashion-mnist``, Debian's ``dataset-fashion-mnist`` and the cache, and
            else fetched.
        url: Where to fetch them from.

    Raises:
        DataError: If a file is missing, damaged or cannot be fetched.
    """
    root = folder or _local_folder() or _download(url)
    records = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        pixels = read_idx(root / f"{stem}-images-idx3-ubyte.gz")
        labels = read_idx(root / f"{stem}-labels-idx1-ubyte.gz")
        if pixels.ndim != 3 or labels.shape != (len(pixels),) or (len(labels) and labels.max() >= len(FASHION_CLASSES)):
            raise DataError(f"{root}: the {stem} files do not belong together: {pixels.shape} and {labels.shape}")
        records[split] = [Record(p, int(k)) for p, k in zip(pixels, labels, strict=True)]
    return Source(name="fashion-mnist", classes=FASHION_CLASSES, records=records, holdout=FASHION_VAL_SHARE)


def has_fashion_mnist(folder: Path) -> bool:
    """Tell whether a folder holds the four published files."""
    return all((folder / name).is_file() for name in FASHION_SHA256)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of unsigned bytes.

    Raises:
        DataError: If it is missing or damaged.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as gzip: {error}") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise DataError(f"{path} is not an IDX file of bytes (it starts with {data[:4].hex()})")
    rank = data[3]
    shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
    values = np.frombuffer(data, np.uint8, offset=min(len(data), 4 + 4 * rank))
    if values.size != np.prod(shape, dtype=np.int64):
        raise DataError(f"{path} is damaged: its header promises {shape}, it holds {values.size} values")
    return values.reshape(shape)


def _local_folder() -> Path | None:
    places = [
        Path("data/fashion-mnist"),
        Path("fashion-mnist"),
        Path("/usr/share/datasets/fashion-mnist"),  # Debian package dataset-fashion-mnist
        cache_folder() / "fashion-mnist",
    ]
    return next((p for p in places if has_fashion_mnist(p)), None)


def _download(url: str) -> Path:
    root = cache_folder() / "fashion-mnist"
    root.mkdir(parents=True, exist_ok=True)
    for name, expected in FASHION_SHA256.items():
        if (root / name).is_file():
            continue
        try:
            with urllib.request.urlopen(url + name, timeout=60) as answer:
                data = answer.read()
        except (urllib.error.URLError, OSError) as error:
            raise DataError(
                f"Fashion-MNIST is not on this machine and {name} could not be fetched ({error}); put the four "
                "files into ./data/fashion-mnist or give their folder"
            ) from error
        if _content_sha256(data) != expected:
            raise DataError(f"{url}{name} is not the published file (checksum mismatch); nothing was kept")
        write_bytes(root / name, data)
    return root


def _content_sha256(data: bytes) -> str:
    try:
        return hashlib.sha256(gzip.decompress(data)).hexdigest()
    except (OSError, EOFError, zlib.error):
        return "not gzip"
