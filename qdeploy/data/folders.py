"""A folder of images, one sub-folder a class, with or without train/, val/ and test/ above them."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from qdeploy.core.errors import DataError
from qdeploy.core.image_formats import is_hidden
from qdeploy.core.listing import Kind, walk, what_is
from qdeploy.data.source import Place, Record, Source

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def folder_place(folder: Path) -> Place:
    """Return a folder of images as a place; every image is a file of its own."""
    own = folder.resolve() if folder.is_dir() else folder
    return Place(name=own.name, path=own, read=lambda: source_from_folder(own))


def source_from_folder(folder: Path) -> Source:
    """List the images of a folder; nothing is decoded yet.

    Classes are in the order of their names as text, as torchvision has them: ``0, 1, 10, 2``. A name is one whether its
    accents are composed or not, as Linux and macOS write them.

    Raises:
        DataError: If it is missing, has no class folders, two of one name, or its splits have different classes.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"the data folder {folder} {what}; give a folder with one sub-folder of images per class")
    split_folders = _split_folders(folder)
    classes = _classes(split_folders.get("train", folder))
    if not classes:
        raise DataError(f"{folder} has no sub-folders; put the images of each class into a folder of its own")
    problems = [text for root in dict.fromkeys((folder, *split_folders.values())) for text in _beside(root)]
    records: dict[str, list[Record]] = {}
    for split, root in (split_folders or {"train": folder}).items():
        own = _classes(root)
        for name in sorted(set(own) - set(classes)):
            close = [c for c in classes if c.casefold() == name.casefold()]
            hint = f", which has {close[0]!r}: names differ in case; give both folders one name" if close else ""
            raise DataError(f"{root} has a class '{name}' that {split_folders['train']} has not{hint}")
        for k, name in enumerate(classes):
            part = _records(own[name], k, problems) if name in own else []
            records.setdefault(split, []).extend(part)
    return Source(name=folder.resolve().name, classes=tuple(classes), records=records, problems=problems)


def order_note(classes: tuple[str, ...]) -> str | None:
    """Return what has to be known of classes that are numbers but stand in the order of text, or None."""
    if not all(name.isascii() and name.isdigit() for name in classes):
        return None
    if list(classes) == sorted(classes, key=int):
        return None
    return (
        f"the classes are numbers in the order of text ({', '.join(classes[:4])}, ...): output 2 of a model is class "
        f"'{classes[2]}'; a model is matched by its labels, never by position"
    )


def _split_folders(folder: Path) -> dict[str, Path]:
    """Find train/, val/ and test/; a folder of such a name without sub-folders is an ordinary class."""
    found: dict[str, Path] = {}
    for path in sorted(_folders(folder)):
        for split, names in SPLIT_FOLDERS.items():
            if path.name.lower() in names and _folders(path):
                if split in found:
                    raise DataError(f"{folder} has both {found[split].name}/ and {path.name}/; keep one of them")
                found[split] = path
    if not found:
        return {}
    if "train" not in found:
        raise DataError(f"{folder} has {', '.join(p.name for p in found.values())} but no train/ with class folders")
    others = sorted(p.name for p in set(_folders(folder)) - set(found.values()))
    if others:
        raise DataError(f"{folder} has a folder '{others[0]}' beside {found['train'].name}/; move it into a split")
    return found


def _folders(folder: Path) -> list[Path]:
    return [Path(e.path) for e in _entries(folder) if _leads_to_folder(e)]


def _beside(folder: Path) -> list[str]:
    """Return what is said of images beside class folders, and of what might be images or class folders."""
    found = [what_is(e) for e in _entries(folder) if not _leads_to_folder(e)]
    told = {Kind.IMAGE: "lies beside the class folders, left out"}
    return [f"{f.path}: {told.get(f.kind, f.why)}" for f in found if f.kind in (Kind.IMAGE, Kind.LOST)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds that is not hidden, by name.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not is_hidden(e.name)), key=lambda e: e.name)
    except OSError as error:
        raise DataError(f"the data folder {folder} cannot be read: {error.strerror or error}") from error


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to where nobody may look, or to itself
        return False


def _classes(folder: Path) -> dict[str, Path]:
    """Return the class folders by name, composed (NFC), in the order of the names.

    Raises:
        DataError: If a name is no printable text, or two are the same but for case or the form of their accents.
    """
    found: dict[str, Path] = {}
    alike: dict[str, Path] = {}
    for path in sorted(_folders(folder)):
        name = unicodedata.normalize("NFC", path.name)
        if not name.isprintable():
            raise DataError(f"{folder} has a class folder whose name is not printable text: {name!r}; rename it")
        other = alike.setdefault(name.casefold(), path)
        if other != path:
            raise DataError(
                f"{folder} has two class folders whose names differ only in case or in their Unicode form: "
                f"{other.name!a} and {path.name!a}; merge them or rename one"
            )
        found[name] = path
    return dict(sorted(found.items()))


def _records(folder: Path, label: int, problems: list[str]) -> list[Record]:
    """Return the images at every level of a class's folder; what is none, or cannot be had, becomes a problem."""
    records = []
    for found in walk(os.fspath(folder)):
        if found.kind is Kind.IMAGE:
            records.append(Record(Path(found.path), label))
        else:
            problems.append(f"{found.path}: {found.why}")
    return records
