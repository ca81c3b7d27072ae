"""A folder of images, one sub-folder a class, with or without train/, val/ and test/ above them."""

from __future__ import annotations

from pathlib import Path

from qdeploy.core.errors import DataError
from qdeploy.core.image_formats import SUFFIXES
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

    Raises:
        DataError: If it is missing, has no class folders, or its splits have different classes.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"the data folder {folder} {what}; give a folder with one sub-folder of images per class")
    split_folders = _split_folders(folder)
    classes = _classes(split_folders.get("train", folder))
    if not classes:
        raise DataError(f"{folder} has no sub-folders; put the images of each class into a folder of its own")
    for name in classes:
        if not name.isprintable():
            raise DataError(f"{folder} has a class folder whose name is not printable text: {name!r}; rename it")
    problems: list[str] = []
    records = {}
    for split, root in (split_folders or {"train": folder}).items():
        unknown = sorted(set(_classes(root)) - set(classes))
        if unknown:
            raise DataError(f"{root} has a class '{unknown[0]}' that {split_folders['train']} has not")
        records[split] = [r for k, name in enumerate(classes) for r in _records(root / name, k, problems)]
    return Source(name=folder.resolve().name, classes=tuple(classes), records=records, problems=problems)


def _split_folders(folder: Path) -> dict[str, Path]:
    """Find train/, val/ and test/; a folder of such a name without sub-folders is an ordinary class."""
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        for split, names in SPLIT_FOLDERS.items():
            if path.name.lower() in names and _classes(path):
                if split in found:
                    raise DataError(f"{folder} has both {found[split].name}/ and {path.name}/; keep one of them")
                found[split] = path
    if not found:
        return {}
    if "train" not in found:
        raise DataError(f"{folder} has {', '.join(p.name for p in found.values())} but no train/ with class folders")
    others = sorted(set(_classes(folder)) - {p.name for p in found.values()})
    if others:
        raise DataError(f"{folder} has a folder '{others[0]}' beside {found['train'].name}/; move it into a split")
    return found


def _classes(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _records(folder: Path, label: int, problems: list[str]) -> list[Record]:
    if not folder.is_dir():
        return []
    records = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        if path.suffix.lower() in SUFFIXES:
            records.append(Record(path, label))
        else:
            problems.append(f"{path}: not an image file (known: {', '.join(sorted(SUFFIXES))})")
    return records
