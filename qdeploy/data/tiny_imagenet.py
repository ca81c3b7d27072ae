"""Tiny ImageNet as Stanford's CS231n publishes it: 200 classes, 100,000 training and 10,000 validation JPEGs.

Read from the unpacked folder or from inside the zip. The official test images have no labels and are left out: the
official validation images are our test split, and 20 % of each class's training images our validation split, as in
the Qonstraint paper.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from qdeploy.core.errors import DataError
from qdeploy.core.progress import Progress
from qdeploy.core.words import counted
from qdeploy.data.download import Checksum, fetch
from qdeploy.data.places import cache_folder, look_for
from qdeploy.data.source import Place, Reader, Record, Source
from qdeploy.data.trees import FolderTree, Tree, ZipTree

NAME = "tiny-imagenet"
PUBLISHED = "tiny-imagenet-200"
ARCHIVE = f"{PUBLISHED}.zip"
URL = f"http://cs231n.stanford.edu/{ARCHIVE}"
CHECKSUM = Checksum(kind="md5", hex="90528d7ca1a48142e341f4ef8d21d0de")
"""MD5 of the zip of 248,100,043 bytes, as other libraries pin it (Stanford publishes none)."""
HOLDOUT = 0.2
CLASSES = 200
IMAGES = {"train": 80_000, "val": 20_000, "test": 10_000}
AGAIN = f"unpack or fetch {ARCHIVE} again"


def tiny_imagenet_source(path: Path) -> Source:
    """List the images of the unpacked folder or of the zip; nothing is decoded yet.

    Raises:
        DataError: If it is damaged or incomplete.
    """
    tree = FolderTree(path) if path.is_dir() else ZipTree(path, "wnids.txt")
    wnids = _text(tree, "wnids.txt").split()
    if not wnids or len(set(wnids)) != len(wnids):
        raise DataError(f"wnids.txt in {tree} is empty or names a class twice; {AGAIN}")
    unknown = sorted(set(tree.folders("train")) - set(wnids))
    if unknown:
        raise DataError(f"{tree} has a folder train/{unknown[0]} that wnids.txt does not name; {AGAIN}")
    train = [Record(tree.image(p), k) for k, wnid in enumerate(wnids) for p in _train_images(tree, wnid)]
    return Source(
        name=NAME,
        classes=_labels(wnids, tree.text("words.txt") or ""),
        records={"train": train, "test": _official_validation(tree, wnids)},
        holdout=HOLDOUT,
    )


def _text(tree: Tree, path: str) -> str:
    text = tree.text(path)
    if text is None:
        raise DataError(f"{tree} has no {path}; {AGAIN}")
    return text


def _train_images(tree: Tree, wnid: str) -> list[str]:
    """Return the paths of a class's training images; ``<wnid>_boxes.txt`` tells whether all are there."""
    folder = f"train/{wnid}/images"
    names = _jpegs(tree, folder)
    if not names:
        raise DataError(f"{tree} has no images in {folder}, a class that wnids.txt names; {AGAIN}")
    listed = {line.split("\t")[0] for line in (tree.text(f"train/{wnid}/{wnid}_boxes.txt") or "").splitlines() if line}
    missing = sorted(listed - set(names))
    if missing:
        raise DataError(f"{tree} lacks {counted(len(missing), 'image')} of {folder}, e.g. {missing[0]}; {AGAIN}")
    return [f"{folder}/{name}" for name in names]


def _official_validation(tree: Tree, wnids: list[str]) -> list[Record]:
    """Pair the validation images with their labels; each line: file, wnid and box, separated by tabs."""
    path = "val/val_annotations.txt"
    numbers = {wnid: k for k, wnid in enumerate(wnids)}
    images = set(_jpegs(tree, "val/images"))
    records = []
    for line in filter(None, _text(tree, path).splitlines()):
        name, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0].strip()
        if wnid not in numbers:
            raise DataError(f"{path} in {tree} gives {name} the class '{wnid}', which wnids.txt does not name; {AGAIN}")
        if name not in images:
            raise DataError(f"{path} in {tree} names {name}, which val/images does not have; {AGAIN}")
        records.append(Record(tree.image(f"val/images/{name}"), numbers[wnid]))
    return records


def _jpegs(tree: Tree, folder: str) -> list[str]:
    return [n for n in tree.files(folder) if n.lower().endswith((".jpeg", ".jpg")) and not n.startswith(".")]


def _labels(wnids: list[str], words: str) -> tuple[str, ...]:
    """Name the classes for people, in the order of wnids.txt.

    The first of a class's words in words.txt (``goldfish`` of ``goldfish, Carassius auratus``); where two classes
    share it, both get their wnid behind it; the wnid alone where words.txt has none.
    """
    first = {}
    for line in words.splitlines():
        wnid, _, terms = line.partition("\t")
        first[wnid] = terms.split(",")[0].strip()
    names = [first.get(w) or w for w in wnids]
    uses = Counter(names)
    return tuple(n if uses[n] == 1 else f"{n} ({w})" for n, w in zip(names, wnids, strict=True))


def is_tiny_imagenet(path: Path) -> bool:
    """Tell by its content whether this is the unpacked folder or the zip; a zip is opened later."""
    if path.is_dir():
        return os.path.isfile(path / "wnids.txt") and os.path.isdir(path / "train")
    if path.suffix.lower() != ".zip" or not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            return PUBLISHED.encode() in stream.read(4096) or NAME in path.name
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _recognise(path: Path) -> Place | None:
    return _place(path.resolve()) if is_tiny_imagenet(path) else None


def _find(progress: Progress | None) -> Place:
    found = look_for(NAME, is_tiny_imagenet, (PUBLISHED, ARCHIVE))
    return _place(found or fetch_tiny_imagenet(progress=progress))


def fetch_tiny_imagenet(url: str = URL, progress: Progress | None = None) -> Path:
    """Download the zip into the cache; gives its path.

    Raises:
        DataError: If it cannot be fetched or is not the published file.
    """
    target = cache_folder() / NAME / ARCHIVE
    fetch(url, target, CHECKSUM, f"put {ARCHIVE} into ./data or give its path", progress)
    return target


def _place(path: Path) -> Place:
    files = () if path.is_dir() else (path,)
    return Place(name=NAME, path=path, read=lambda: tiny_imagenet_source(path), files=files, holdout=HOLDOUT)


READER = Reader(find=_find, recognise=_recognise, classes=CLASSES, images=IMAGES)
