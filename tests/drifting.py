"""Folders of images that a model was made for, and of others, as a camera might begin to send them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qdeploy.data.embedded import embedded_source

Pixels = NDArray[np.uint8]


def clothes(count: int, seed: int = 0) -> list[Pixels]:
    """Return so many of the embedded test images, 28x28 grey, drawn without order."""
    records = embedded_source().records["test"]
    chosen = np.random.default_rng(seed).permutation(len(records))[:count]
    return [np.asarray(records[i].image()) for i in chosen]


def inverted(images: Iterable[Pixels]) -> list[Pixels]:
    """Return the images in their negative."""
    return [255 - image for image in images]


def folder_of(images: Iterable[Pixels], folder: Path) -> Path:
    """Write the images as PNG."""
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:04}.png")
    return folder
