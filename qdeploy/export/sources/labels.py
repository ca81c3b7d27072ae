"""The names of a foreign file's classes in the order of its outputs, and data brought into that order."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qdeploy.core.artifact import CARD_KEY
from qdeploy.core.errors import InputError, near_miss
from qdeploy.core.progress import Note, silent
from qdeploy.core.regular import TooLargeError, read_regular
from qdeploy.data.dataset import Dataset
from qdeploy.export.graph.walk import all_nodes
from qdeploy.export.sources.label_text import KEYS, SURE, key_of_labels, left_out, listed, names_in

BESIDE = (
    *("labels.txt", "classes.txt", "class_names.txt", "labels.json", "classes.json", "class_names.json"),
    *("id2label.json", "index_to_name.json", "idx_to_class.json", "class_to_idx.json", "class_indices.json"),
)
INSIDE = ("pretrained_cfg", "model_config")
MOST_BYTES = 10_000_000
Labels = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FoundLabels:
    """Labels, and where they stand."""

    labels: Labels
    where: str
    guessed: bool = False
    """Whether nobody said that they are the file's: they stand in another file, or in an entry of another name."""
    repeated: tuple[str, ...] = ()
    """Those that stood there several times, as ``crane`` in ImageNet, with the numbers that tell them apart."""
    written: Labels = ()
    """Lines that were read as a number and a name, for folders that are called so."""
    numbers: tuple[int, ...] = ()
    """The number that stands with each, growing; empty for labels without. Those of COCO leave some out."""

    def said(self) -> str:
        """Return whose labels they are, for the user to know."""
        text = f"the labels are those of {self.where}"
        if self.written:
            text += "; numbers at the start of lines were read as class numbers"
        if missing := left_out(self.numbers, min(self.numbers, default=0)):
            text += f"; no label has the id {listed(missing)}: they are taken in the order of ids, closed up"
        if self.repeated:
            text += f"; {len(self.repeated)} of them are names of several classes and got their number: "
        return text + _some(self.repeated)


def found_labels(labels: Sequence[str], where: str, *, guessed: bool = False) -> FoundLabels:
    """Return labels that are all different: what stands there several times gets its number, counted from 0.

    Raises:
        InputError: If some are still the same.
    """
    forms = [unicodedata.normalize("NFC", label) for label in labels]
    counts = Counter(forms)
    apart = tuple(f"{a} ({i})" if counts[a] > 1 else b for i, (a, b) in enumerate(zip(forms, labels, strict=True)))
    if len(set(apart)) < len(apart):
        twice = next(label for label, n in Counter(apart).items() if n > 1)
        raise InputError(f"{where} holds the label '{twice}' twice", fix="give each class a label of its own")
    repeated = tuple(a for a, form in zip(apart, forms, strict=True) if counts[form] > 1)
    return FoundLabels(labels=apart, where=where, guessed=guessed, repeated=repeated)


def labels_from_file(path: Path, *, guessed: bool = False) -> FoundLabels:
    """Read labels from a file: one a line, maybe with its number, JSON as a list or table, or ``names`` in YAML.

    Args:
        path: The file.
        guessed: Whether nobody named it.

    Raises:
        InputError: If it cannot be read, or holds no labels.
    """
    try:
        text = read_regular(path, MOST_BYTES).decode("utf-8-sig")
    except TooLargeError as error:
        raise InputError(f"the labels' file {path} is too large: {error.size_bytes:,} bytes") from error
    except OSError as error:
        raise InputError(f"the labels' file {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the labels' file {path} is no UTF-8 text; save it as such") from error
    return read_labels(text, str(path), path.stem, guessed=guessed)


def read_labels(value: Any, where: str, key: str, *, guessed: bool = False) -> FoundLabels:
    """Return the labels of a text, list or table that stands in an entry or file of a name.

    Raises:
        InputError: If it holds none, or such as cannot be used.
    """
    found = names_in(value, where, key)
    labels = found_labels(checked(found.names, where), where, guessed=guessed)
    return replace(labels, written=tuple(found.lines), numbers=tuple(found.numbers))


def find_labels(
    model: onnx.ModelProto, given: Labels | Path | None, file: Path, note: Note = silent
) -> Iterator[FoundLabels]:
    """Yield what may be the labels, the surest first: given ones alone, else in the metadata, then in files beside.

    Args:
        model: The file's graph.
        given: What the user says.
        file: Its name.
        note: Told of places that should hold labels, and why theirs cannot be used.

    Raises:
        InputError: If given ones cannot be used.
    """
    if isinstance(given, Path):
        yield labels_from_file(given)
    elif given is not None:
        yield found_labels(checked(list(given), "`labels`"), "`labels`")
    else:
        for read in _places(model, file):
            if found := _usable(read, note):
                yield found


def fitting(found: Iterable[FoundLabels], classes: int, note: Note = silent) -> FoundLabels | None:
    """Return the first labels of that many classes, else the first that are said to be the file's, else None.

    Args:
        found: What may be the labels, the surest first.
        classes: Number of the file's classes.
        note: Told of those that are passed over.
    """
    others: list[FoundLabels] = []
    right = None
    for right in found:
        if len(right.labels) == classes:
            break
        others.append(right)
    else:
        right = next((labels for labels in others if not labels.guessed), None)
    for labels in others:
        if labels is not right:
            note(f"{labels.where} holds {len(labels.labels)} labels and not {classes}: it is left alone")
    return right


def _places(model: onnx.ModelProto, file: Path) -> Iterator[Callable[[], FoundLabels]]:
    """Yield how labels are read where they may stand, the surest place first."""
    entries = [p for p in model.metadata_props if p.value and p.key != CARD_KEY]
    places = {p.key: f"metadata '{p.key}' of {file.name}" for p in entries}
    for known in KEYS:
        for p in entries:
            if p.key.lower() == known:
                yield partial(read_labels, p.value, places[p.key], p.key)
    for node in all_nodes(model):
        if node.op_type == "ZipMap" and (names := _of_zipmap(node)):
            yield partial(read_labels, names, f"the ZipMap of {file.name}", "")
    others = [(p, key) for p in entries if p.key.lower() not in KEYS and (key := key_of_labels(p.value))]
    for p, key in others:
        if key in SURE:
            yield partial(read_labels, p.value, places[p.key], p.key, guessed=True)
    for name in (f"{file.stem}.labels.txt", f"{file.stem}.txt", *BESIDE):
        beside = file.parent / name
        if os.path.isfile(beside):  # unlike pathlib's it takes any length
            yield partial(labels_from_file, beside, guessed=True)
    for where, key, value in _in_config(file.parent / "config.json"):
        yield partial(read_labels, value, where, key, guessed=True)
    for p, key in others:
        if key not in SURE:
            yield partial(read_labels, p.value, places[p.key], p.key, guessed=True)


def _of_zipmap(node: onnx.NodeProto) -> list[str]:
    """Return the names that a ZipMap gives, unless they are the places of the outputs."""
    attributes = {a.name: a for a in node.attribute}
    if "classlabels_strings" in attributes:
        return [s.decode(errors="replace") for s in attributes["classlabels_strings"].strings]
    numbers = list(attributes["classlabels_int64s"].ints) if "classlabels_int64s" in attributes else []
    return [] if numbers == list(range(len(numbers))) else [str(n) for n in numbers]


def _in_config(path: Path) -> Iterator[tuple[str, str, Any]]:
    try:
        config = json.loads(read_regular(path, MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return
    tables = [config, *(config.get(k) for k in INSIDE)] if isinstance(config, dict) else []
    for table in (t for t in tables if isinstance(t, dict)):
        yield from ((f"'{key}' of {path}", key, table[key]) for key in KEYS if table.get(key))


def _usable(read: Callable[[], FoundLabels], note: Note) -> FoundLabels | None:
    """Return labels that are names; None for placeholders such as LABEL_0, and for others that cannot be used."""
    try:
        found = read()
    except InputError as error:
        note(f"no labels were taken from a place that should hold them: {error}")
        return None
    if all(label.lower().replace("_", "") == f"label{i}" for i, label in enumerate(found.labels)):
        return None
    return found


def checked(labels: Sequence[str], where: str) -> Labels:
    """Return labels if they can be used: at least two, and printable.

    Raises:
        InputError: If they cannot.
    """
    if len(labels) < 2:
        raise InputError(f"{where} must hold at least 2 labels, one a line or as JSON", found=len(labels))
    for i, label in enumerate(labels):
        if not label or not label.isprintable():
            raise InputError(f"{where} holds a label that is no printable text", found=f"{label!r} at place {i}")
    return tuple(labels)


def matched(dataset: Dataset, found: FoundLabels | None, classes: int, file: Path) -> tuple[Dataset, list[str]]:
    """Return data whose classes are the file's, in the order of its outputs, and what is worth saying.

    Args:
        dataset: Data with the file's classes, or some of them.
        found: The file's labels, if they are known; otherwise the data's classes are taken as they stand.
        classes: Number of the file's classes.
        file: Name of the file.

    Raises:
        InputError: If the classes do not fit.
    """
    own = dataset.classes
    if found is None:
        if classes != len(own):
            raise InputError(
                f"{file} tells {classes} classes apart, {dataset.name} has {len(own)}; give its own data, or `labels`"
            )
        return dataset, _doubts(own)
    require_count(found, classes, file)
    if found.written and set(own) <= set(found.written):
        found = replace(found, labels=found.written)
    index = _positions(own, found, dataset.name)
    notes = [found.said()]
    if index != sorted(index):
        notes.append(f"{dataset.name} has its classes in another order than the file; they were matched by name")
    missing = [label for i, label in enumerate(found.labels) if i not in index]
    if missing:
        notes.append(f"{len(missing)} of the file's {classes} labels have no images: {_some(missing)}")
    places = np.asarray(index, np.int64)
    splits = {name: replace(split, labels=places[split.labels]) for name, split in dataset.splits.items()}
    return replace(dataset, classes=found.labels, splits=splits), notes


def require_count(found: FoundLabels, classes: int, file: Path) -> None:
    """Refuse labels of another number.

    Raises:
        InputError: If they are more or fewer than the classes.
    """
    if len(found.labels) != classes:
        raise InputError(
            f"{file} tells {classes} classes apart, {found.where} names {len(found.labels)}",
            fix="give the right ones with `labels`",
        )


def _positions(classes: Labels, found: FoundLabels, name: str) -> list[int]:
    """Return each class' place among the labels: by name; by number if all are numbers and none is a label."""
    by_name = {unicodedata.normalize("NFC", label): i for i, label in enumerate(found.labels)}
    wanted = [unicodedata.normalize("NFC", c) for c in classes]
    strange = [c for c in wanted if c not in by_name]
    if not strange:
        return [by_name[c] for c in wanted]
    places = {n: i for i, n in enumerate(found.numbers or range(len(found.labels)))}
    numbers = {int(c) for c in classes if c.isascii() and c.isdigit()}
    if len(numbers) == len(strange) == len(classes) and numbers <= set(places):
        return [places[int(c)] for c in classes]
    raise InputError(
        f"{name} has the class '{strange[0]}'{near_miss(strange[0], by_name)}; {found.where} names "
        f"{_some(found.labels)}",
        fix="name the folders so, or give `labels` with the folders' names in the order of the outputs",
    )


def _doubts(classes: Labels) -> list[str]:
    """Say in which order the data's classes were taken; of numbers that of the text, if there are two."""
    if not all(c.isascii() and c.isdigit() for c in classes) or sorted(classes, key=int) == list(classes):
        order = f"those of the data are taken in their order ({_some(classes)})"
        return [f"nothing says how the file calls its classes: {order}"]
    return [
        f"the folders are numbers and were taken in the order of text ({_some(classes)}); if the file counts "
        f"{_some(sorted(classes, key=int))}, give `labels`"
    ]


def _some(labels: Sequence[str]) -> str:
    return ", ".join(labels[:4]) + (", ..." if len(labels) > 4 else "")
