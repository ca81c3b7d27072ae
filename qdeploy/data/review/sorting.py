"""From a person's labels to a folder a class, which ``qdeploy train`` takes."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qdeploy.core.errors import ImageError, InputError
from qdeploy.core.files import read_json, write_bytes
from qdeploy.core.image import image_bytes
from qdeploy.core.image_formats import is_hidden
from qdeploy.core.records import RecordError, decode
from qdeploy.core.whole import require_writable
from qdeploy.core.words import counted
from qdeploy.data.folders import SPLIT_FOLDERS
from qdeploy.data.review.collected import Collected

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One image's label in a file that the page has made."""

    sha256: str
    label: str | None
    """None: it shows none of the classes, and goes nowhere."""


@dataclass(frozen=True, kw_only=True)
class _Document:
    schema: int
    labelled: tuple[Labelled, ...]


@dataclass(frozen=True, kw_only=True)
class Sorted:
    """Where labelled images went."""

    out: str
    """The folder with the classes' folders."""
    classes: dict[str, int]
    """Images of each class, of this file of labels."""
    written: int
    there: int
    """Images that were in their folder already."""
    none: int
    """Images that show none of the classes."""
    unlabelled: int
    """Images of the folder that have no label."""
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def read_labels(file: Path) -> dict[str, str | None]:
    """Return the label of each image by its file's SHA-256.

    Raises:
        InputError: If the file is not one that the page has made, or a label cannot name a folder.
    """
    if not file.exists():
        raise InputError(f"{file} is not there", fix="the page that `qdeploy review` writes downloads it by its button")
    try:
        document = decode(_Document, read_json(file))
        if document.schema != SCHEMA:
            raise RecordError(f"its schema is {document.schema}, known is {SCHEMA}")
    except RecordError as error:
        raise InputError(f"{file} holds no labels of a review page: {error}") from error
    found = {row.sha256: row.label for row in document.labelled}
    for label in found.values():
        if label is not None:
            folder_name(label)
    return found


def folder_name(label: str) -> str:
    """Return the folder of a label; a slash in it becomes a hyphen.

    Raises:
        InputError: If no folder can be named so.
    """
    name = label.replace("/", "-").replace("\\", "-").replace("\0", "-")
    if not name.strip() or is_hidden(name) or not name.isprintable() or len(name.encode()) > 255:
        raise InputError(f"no folder of a data set can be named after the label {label!r:.80}")
    return name


def sort_images(images: list[Collected], labels: dict[str, str | None], out: Path) -> Sorted:
    """Copy labelled images into a folder a class; what is there stays, and nothing is removed.

    Args:
        images: The folder's images.
        labels: Each image's label by its file's SHA-256.
        out: A data set to add to, or a new one; of one with train, val and test the images go to train.

    Raises:
        InputError: If it cannot be written to.
    """
    require_writable(out)
    root = _training_folder(out)
    counts: Counter[str] = Counter()
    problems, written, there, none, unlabelled = [], 0, 0, 0, 0
    for image in images:
        if image.sha256 not in labels:
            unlabelled += 1
            continue
        label = labels[image.sha256]
        if label is None:
            none += 1
            continue
        target = root / folder_name(label) / f"{image.sha256}{image.path.suffix.lower()}"
        counts[folder_name(label)] += 1
        if target.is_file():
            there += 1
            continue
        try:
            data = image_bytes(image.path)
        except ImageError as error:
            problems.append(f"{image.path}: {error}")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, data)
        written += 1
    lost = len(labels.keys() - {image.sha256 for image in images})
    if lost:
        problems.append(f"{counted(lost, 'labelled image')} not in the folder")
    return Sorted(
        out=str(root),
        classes=dict(sorted(counts.items())),
        written=written,
        there=there,
        none=none,
        unlabelled=unlabelled,
        notes=_notes(labels),
        problems=tuple(problems),
    )


def _training_folder(out: Path) -> Path:
    """Return the folder with the classes' folders: that of the training images where there are splits."""
    if out.is_dir():
        for path in sorted(p for p in out.iterdir() if p.is_dir()):
            if path.name.lower() in SPLIT_FOLDERS["train"] and any(p.is_dir() for p in path.iterdir()):
                return path
    return out


def _notes(labels: dict[str, str | None]) -> tuple[str, ...]:
    changed = sorted({label for label in labels.values() if label is not None and folder_name(label) != label})
    return tuple(f"the images of '{label}' are in the folder '{folder_name(label)}'" for label in changed)
