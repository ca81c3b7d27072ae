"""From the word on the command line to a data set."""

from __future__ import annotations

from pathlib import Path

from qdeploy.core.errors import DataError, near_miss
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.dataset import Dataset, Progress, Source, read_source
from qdeploy.data.embedded import NAME as EMBEDDED
from qdeploy.data.embedded import embedded_source
from qdeploy.data.folders import source_from_folder
from qdeploy.data.published import fashion_mnist_source, has_fashion_mnist

PUBLISHED = {EMBEDDED: embedded_source, "fashion-mnist": fashion_mnist_source}
SPLIT_SEED = 0
"""Splits are the same in every run, whatever the training seed: results stay comparable."""


def find_source(data: str) -> Source:
    """Find a data set by its name or its folder.

    Raises:
        DataError: If there is neither; the nearest name is suggested.
    """
    if data in PUBLISHED:  # a name always wins; a folder of that name is ./NAME
        return PUBLISHED[data]()
    folder = Path(data)
    if folder.is_dir() and has_fashion_mnist(folder):
        return fashion_mnist_source(folder)
    if not folder.exists() and "/" not in data:
        raise DataError(
            f"there is no data folder or data set named '{data}'{near_miss(data, PUBLISHED)}; known: "
            + ", ".join(PUBLISHED)
        )
    return source_from_folder(folder)


def location_of(data: str) -> str:
    """Give a data set's name, or its folder's absolute path: what a run remembers."""
    return data if data in PUBLISHED else str(Path(data).resolve())


def load_dataset(
    data: str = EMBEDDED, preprocessing: Preprocessing | None = None, progress: Progress | None = None
) -> Dataset:
    """Find, decode and split a data set.

    Args:
        data: ``fashion-mnist-mini`` (embedded), ``fashion-mnist``, or a folder with a sub-folder per class.
        preprocessing: How images become inputs; the default is 64x64.
        progress: Called with the number of images read and their total.

    Raises:
        DataError: If it cannot be used; the text says why.
    """
    return read_source(find_source(data), preprocessing or Preprocessing(), SPLIT_SEED, progress)
