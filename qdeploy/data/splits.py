"""Which decoded image belongs to which split: repeats dropped, missing splits cut, all by row numbers."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import DataError
from qdeploy.core.words import counted
from qdeploy.data.dataset import SPLITS
from qdeploy.data.source import Record, Source

REPEATED = "the same image as"
"""Words of the problems that name an image which is there twice."""
Index = NDArray[np.int64]
"""Row numbers."""


def split_rows(
    given: dict[str, Index], labels: Index, hashes: list[str], source: Source, problems: list[str], seed: int
) -> dict[str, Index]:
    """Choose the rows of train, val and test.

    Args:
        given: The readable rows of every split that the source defines.
        labels: The label of every row.
        hashes: The hash of every row's image.
        source: Gives the classes and the share to hold out.
        problems: Gets a line for repeats and for missing classes.
        seed: Seed of the choice of held-out images.

    Raises:
        DataError: If a class is left without training images or a split without images.
    """
    records = [r for part in source.records.values() for r in part]
    kept = _without_repeats(given, labels, hashes, records, problems)
    for k, name in enumerate(source.classes):
        if not (labels[kept["train"]] == k).any():
            raise DataError(f"class '{name}' of {source.name} has no usable training image{_because(problems)}")
    rng = np.random.default_rng(seed)
    for name in SPLITS:
        if name not in kept:
            kept["train"], kept[name] = _cut(kept["train"], labels, source, rng)
    _note_missing_classes(kept, labels, source, problems)
    return {name: kept[name] for name in SPLITS}


def expected_counts(source: Source) -> dict[str, int]:
    """Return how many images each split will have if every one is usable and none repeats another."""
    counts = {name: len(records) for name, records in source.records.items()}
    by_class = Counter(record.label for record in source.records["train"])
    for name in SPLITS:
        if name not in counts:
            held = Counter({k: max(1, round(n * source.holdout)) for k, n in by_class.items()})
            by_class -= held
            counts["train"], counts[name] = by_class.total(), held.total()
    return {name: counts[name] for name in SPLITS}


def _without_repeats(
    given: dict[str, Index], labels: Index, hashes: list[str], records: list[Record], problems: list[str]
) -> dict[str, Index]:
    """Drop images seen before; test keeps its own, then val, then train, so that measurements stay honest."""
    seen: dict[str, tuple[str, int]] = {}
    unnamed: Counter[str] = Counter()
    kept: dict[str, Index] = {}
    for name in [n for n in reversed(SPLITS) if n in given]:
        rows = []
        for row, label in zip(given[name].tolist(), labels[given[name]].tolist(), strict=True):
            if hashes[row] not in seen:
                seen[hashes[row]] = (name, row)
                rows.append(row)
                continue
            first, first_row = seen[hashes[row]]
            same = "" if labels[first_row] == label else " under another label"
            source = records[row].source
            if isinstance(source, np.ndarray):
                unnamed[f"of {name} like one of {first}{same}"] += 1
            else:
                problems.append(f"{source}: {REPEATED} {records[first_row].source} of {first}{same}; left out")
        kept[name] = np.asarray(rows, np.int64)
    problems += [f"{counted(count, 'image')} {what}; left out" for what, count in unnamed.items()]
    return kept


def _cut(train: Index, labels: Index, source: Source, rng: np.random.Generator) -> tuple[Index, Index]:
    """Take the held-out share from the training rows, class by class."""
    chosen: list[Index] = []
    for k, name in enumerate(source.classes):
        members = rng.permutation(train[labels[train] == k])
        count = max(1, round(len(members) * source.holdout))
        if len(members) - count < 1:
            raise DataError(
                f"class '{name}' of {source.name} has too few images to keep some for validation and test; "
                "give at least 3, or the folders train/, val/ and test/"
            )
        chosen.append(members[:count])
    held = np.sort(np.concatenate(chosen))
    return np.setdiff1d(train, held), held


def _note_missing_classes(rows: dict[str, Index], labels: Index, source: Source, problems: list[str]) -> None:
    for name in SPLITS:
        if len(rows[name]) == 0:
            raise DataError(f"{source.name} has no usable image in {name}{_because(problems)}")
        missing = [label for k, label in enumerate(source.classes) if not (labels[rows[name]] == k).any()]
        if missing:
            problems.append(f"{name} has no image of {', '.join(missing)}")


def _because(problems: list[str]) -> str:
    return f" ({counted(len(problems), 'problem')}, e.g. {problems[0]})" if problems else ""
