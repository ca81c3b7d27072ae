"""Finding and loading a data set by its name, folder or archive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qdeploy.core.errors import DataError, near_miss
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.progress import Progress
from qdeploy.data import cifar, embedded, fashion_mnist, tiny_imagenet
from qdeploy.data.cache import load_cached
from qdeploy.data.dataset import Dataset
from qdeploy.data.embedded import NAME as EMBEDDED
from qdeploy.data.folders import folder_place
from qdeploy.data.reading import read_source
from qdeploy.data.source import Place, Reader

READERS: dict[str, Reader] = {
    EMBEDDED: embedded.READER,
    fashion_mnist.NAME: fashion_mnist.READER,
    **cifar.READERS,
    tiny_imagenet.NAME: tiny_imagenet.READER,
}
SPLIT_SEED = 0
"""Splits are the same in every run, whatever the training seed: results stay comparable."""


def find_place(data: str, fetching: Progress | None = None) -> Place:
    """Find a data set by its name, or by its folder or archive, whose content tells what it is.

    Args:
        data: The name or path; a name always wins, a folder of that name is ``./NAME``.
        fetching: Called with the bytes of a download.

    Raises:
        DataError: If there is neither; the nearest name is suggested.
    """
    if data in READERS:
        return READERS[data].find(fetching)
    path = Path(data)
    for reader in READERS.values():
        if place := reader.recognise(path):
            return place
    if not path.exists() and "/" not in data:
        raise DataError(
            f"there is no data folder or data set named '{data}'{near_miss(data, READERS)}; known: "
            + ", ".join(READERS)
        )
    return folder_place(path)


def count_classes(data: str) -> int:
    """Count a data set's classes without decoding or fetching anything; of a name they are the published ones.

    Args:
        data: Name, folder or archive of a data set.

    Raises:
        DataError: If there is no such data set, or it is damaged.
    """
    return READERS[data].classes if data in READERS else len(find_place(data).read().classes)


def location_of(data: str) -> str:
    """Return a data set's name, or its folder's or archive's absolute path: what a run remembers."""
    return data if data in READERS else str(Path(data).resolve())


def load_dataset(
    data: str = EMBEDDED,
    preprocessing: Preprocessing | None = None,
    progress: Progress | None = None,
    *,
    cache: bool = True,
    fetching: Progress | None = None,
) -> Dataset:
    """Find, decode and split a data set; what was decoded before is opened.

    Args:
        data: A name in ``READERS``, a published folder or archive, or a folder with a sub-folder per class.
        preprocessing: How images become inputs; the default is 64x64.
        progress: Called with the number of images read and their total.
        cache: Whether decoded images are kept; the small embedded set never is.
        fetching: Called with the bytes of a download and their total.

    Raises:
        DataError: If it cannot be used; the text says why.
    """
    place = find_place(data, fetching)
    rules = preprocessing or Preprocessing()
    if not cache or data == EMBEDDED:
        found = read_source(place.read(), rules, SPLIT_SEED, progress)
    else:
        found = load_cached(place, rules, SPLIT_SEED, progress)
    return replace(found, source=data)
