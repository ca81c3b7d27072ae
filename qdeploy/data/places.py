"""The folders where data sets are looked for, and where downloads and decoded images are kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """Return the folder for downloads and decoded images: ``$QDEPLOY_CACHE``, or ``qdeploy`` in the user's cache."""
    own = os.environ.get("QDEPLOY_CACHE")
    return Path(own) if own else user_cache_path("qdeploy", appauthor=False)


def look_for(
    name: str, recognised: Callable[[Path], bool], published: Iterable[str] = (), more: Iterable[Path] = ()
) -> Path | None:
    """Look for a data set in ``./data/NAME``, ``./NAME``, further places and the cache.

    Args:
        name: The data set's name, a folder's in each place.
        recognised: Tells whether a folder or file, which need not exist, is this data set.
        published: The names of its published folder and archive, looked for inside and beside ``NAME``.
        more: Further places, looked into before the cache.
    """
    tails = [name, *(f"{name}/{p}" for p in published), *published]
    places = [base / tail for base in (Path("data"), Path()) for tail in tails]
    places += [*more, *(cache_folder() / tail for tail in tails)]
    return next((p.resolve() for p in places if recognised(p)), None)
