"""CIFAR-10 and CIFAR-100 in the published binary version: fixed-size records, no pickle.

A record is its label bytes (CIFAR-100: coarse, then fine) and 3,072 bytes of pixels, channel by channel.
"""

from __future__ import annotations

import os
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qdeploy.core.errors import DataError
from qdeploy.core.progress import Progress
from qdeploy.data.download import Checksum, fetch
from qdeploy.data.places import cache_folder, look_for
from qdeploy.data.source import Place, Reader, Record, Source

URL = "https://www.cs.toronto.edu/~kriz/"
IMAGE_BYTES = 3 * 32 * 32
HOLDOUT = 0.1
"""5,000 of the 50,000 published training images are kept for validation."""
IMAGES = {"train": 45_000, "val": 5_000, "test": 10_000}
_TAR_DAMAGE = (OSError, EOFError, tarfile.TarError, zlib.error, ValueError)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One of the two sets as it is published."""

    name: str
    folder: str
    archive: str
    checksum: Checksum
    train: tuple[str, ...]
    test: str
    names: str
    """The file with the class names, one a line."""
    count: int
    """Number of classes."""
    label_bytes: int
    """The last of them is the label we use."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are read."""
        return (*self.train, self.test, self.names)


CIFAR_10 = Layout(
    name="cifar-10",
    folder="cifar-10-batches-bin",
    archive="cifar-10-binary.tar.gz",
    checksum=Checksum(kind="md5", hex="c32a1d4ab5d03f1284b67883e8d87530"),
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test="test_batch.bin",
    names="batches.meta.txt",
    count=10,
    label_bytes=1,
)
CIFAR_100 = Layout(
    name="cifar-100",
    folder="cifar-100-binary",
    archive="cifar-100-binary.tar.gz",
    checksum=Checksum(kind="md5", hex="03b5dce01913d631647c71ecec9e9cb8"),
    train=("train.bin",),
    test="test.bin",
    names="fine_label_names.txt",
    count=100,
    label_bytes=2,
)


def cifar_source(layout: Layout, path: Path) -> Source:
    """Read a set from its unpacked folder or its ``.tar.gz``: official test, validation cut from training.

    Raises:
        DataError: If it is damaged or incomplete.
    """
    files = _files_of_folder(layout, path) if path.is_dir() else _files_of_archive(layout, path)
    missing = [name for name in layout.files if name not in files]
    if missing:
        raise DataError(f"{path} has no {missing[0]}; unpack or fetch {layout.archive} again")
    try:
        classes = tuple(files[layout.names].decode().split())
    except ValueError as error:
        raise DataError(f"{layout.names} in {path} is damaged ({error}); fetch {layout.archive} again") from error
    if len(set(classes)) != layout.count:
        raise DataError(f"{layout.names} in {path} names {len(set(classes))} classes, expected {layout.count}")
    train = [r for name in layout.train for r in _records(layout, path, name, files[name])]
    test = _records(layout, path, layout.test, files[layout.test])
    for what, records in (("training", train), ("test", test)):
        counts = np.bincount([r.label for r in records], minlength=layout.count)
        if len(set(counts.tolist())) != 1:
            raise DataError(
                f"{path} is incomplete: its {what} images are {counts.min()} to {counts.max()} a class, published "
                f"are equally many; fetch {layout.archive} again"
            )
    return Source(name=layout.name, classes=classes, records={"train": train, "test": test}, holdout=HOLDOUT)


def _records(layout: Layout, path: Path, name: str, data: bytes) -> list[Record]:
    size = layout.label_bytes + IMAGE_BYTES
    if not data or len(data) % size:
        raise DataError(
            f"{name} in {path} has {len(data)} bytes, not a multiple of {size}; it is damaged; "
            f"fetch {layout.archive} again"
        )
    table = np.frombuffer(data, np.uint8).reshape(-1, size)
    labels = table[:, layout.label_bytes - 1]
    if labels.max() >= layout.count:
        raise DataError(f"{name} in {path} has the label {labels.max()} of {layout.count}; it is damaged")
    images = table[:, layout.label_bytes :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return [Record(image, int(label)) for image, label in zip(images, labels, strict=True)]


def _files_of_folder(layout: Layout, folder: Path) -> dict[str, bytes]:
    try:
        return {name: (folder / name).read_bytes() for name in layout.files if os.path.isfile(folder / name)}
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error}") from error


def _files_of_archive(layout: Layout, path: Path) -> dict[str, bytes]:
    files = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = Path(member.name).name
                stream = archive.extractfile(member) if name in layout.files and member.isfile() else None
                if stream is not None:
                    files[name] = stream.read()
                    if len(files[name]) != member.size:
                        raise EOFError(f"{name} is cut off")
    except _TAR_DAMAGE as error:
        raise DataError(f"{path} is damaged or incomplete ({error}); delete it and fetch or copy it again") from error
    return files


def _is_set(layout: Layout, path: Path) -> bool:
    """Tell by its content whether this is the set; of an archive only the first member's folder is looked at."""
    if path.is_dir():
        if _is_pickled(layout, path):
            raise DataError(f"{path} is the Python version, a pickle; qdeploy reads the binary one, {layout.archive}")
        return any(os.path.isfile(path / name) for name in (*layout.train, layout.test))
    if not path.name.endswith((".tar.gz", ".tgz")) or not path.is_file():
        return False
    if layout.archive.partition("-binary")[0] + "-" in path.name:
        return True
    try:
        with tarfile.open(path, "r:gz") as archive:
            first = archive.next()
    except _TAR_DAMAGE:
        return False
    return first is not None and layout.folder in Path(first.name).parts


def _is_pickled(layout: Layout, path: Path) -> bool:
    names = ("data_batch_1", "test_batch") if layout.count == 10 else ("train", "test", "meta")
    return all(os.path.isfile(path / name) for name in names)


def fetch_cifar(layout: Layout, url: str = URL, progress: Progress | None = None) -> Path:
    """Download the archive into the cache; gives its path.

    Raises:
        DataError: If it cannot be fetched or is not the published file.
    """
    target = cache_folder() / layout.name / layout.archive
    fetch(url + layout.archive, target, layout.checksum, f"put {layout.archive} into ./data or give its path", progress)
    return target


def _place(layout: Layout, path: Path) -> Place:
    files = tuple(path / name for name in layout.files) if path.is_dir() else (path,)
    return Place(name=layout.name, path=path, read=lambda: cifar_source(layout, path), files=files, holdout=HOLDOUT)


def _reader(layout: Layout) -> Reader:
    def find(progress: Progress | None) -> Place:
        found = look_for(layout.name, lambda p: _is_set(layout, p), (layout.folder, layout.archive))
        return _place(layout, found or fetch_cifar(layout, progress=progress))

    def recognise(path: Path) -> Place | None:
        return _place(layout, path.resolve()) if _is_set(layout, path) else None

    return Reader(find=find, recognise=recognise, classes=layout.count, images=IMAGES)


READERS = {layout.name: _reader(layout) for layout in (CIFAR_10, CIFAR_100)}
