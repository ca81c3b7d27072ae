"""Images that wait for a person's label, with what a model has said of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdeploy.core.errors import DataError, ImageError, InputError
from qdeploy.core.files import read_json, sha256_of
from qdeploy.core.image import image_bytes
from qdeploy.core.listing import Kind, walk
from qdeploy.core.records import RecordError, decode

REASONS = ("unknown", "uncertain", "random")
"""Why a server keeps an image, in the order in which a person sees them."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What is known of an image besides its pixels; ``qdeploy serve --collect`` writes it beside the image."""

    why: str = ""
    """One of ``REASONS``, or nothing of an image that no server has kept."""
    label: str = ""
    """The answer; ``unknown`` below the model's threshold."""
    would_be: str = ""
    """The most probable label."""
    probability: float = 0.0
    """Its probability, in [0, 1]."""
    time: str = ""
    labels: tuple[str, ...] = ()
    """All labels of the model."""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """One image of the folder."""

    path: Path
    name: str
    """Its path below the folder."""
    sha256: str
    """Of the file: by it the image is known in a file of labels."""
    said: Said


def collected_images(folder: Path, problems: list[str]) -> Iterator[Collected]:
    """Return the images of a folder and what is known of them; the same file twice comes once.

    Args:
        folder: What ``qdeploy serve --collect`` has filled, or any folder of images.
        problems: Gets a line for each image, or file beside one, that cannot be read.

    Raises:
        DataError: If there is no such folder.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {what}; give the folder of `qdeploy serve`'s collected images")
    seen = set()
    for found in walk(os.fspath(folder)):
        path = Path(found.path)
        if found.kind is not Kind.IMAGE:
            if path.suffix != ".json":
                problems.append(f"{path}: {found.why}")
            continue
        try:
            digest = sha256_of(image_bytes(path))
        except ImageError as error:
            problems.append(f"{path}: {error}")
            continue
        if digest not in seen:
            seen.add(digest)
            said = _said(path, problems)
            yield Collected(path=path, name=path.relative_to(folder).as_posix(), sha256=digest, said=said)


def labels_of(images: list[Collected], more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return all labels that the models of some images know, in their order, and further ones."""
    return tuple(dict.fromkeys([*(label for image in images for label in image.said.labels), *more]))


def _said(image: Path, problems: list[str]) -> Said:
    path = image.with_suffix(".json")
    if not path.is_file():
        return Said()
    try:
        values: Any = read_json(path)
        return decode(Said, values)
    except (InputError, RecordError) as error:
        problems.append(f"{path}: {error}")
        return Said()
