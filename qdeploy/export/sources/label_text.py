"""Names of classes as other tools write them: a line each, numbered, as JSON, as Python, or in a YAML file."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
import warnings
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from qdeploy.core.errors import InputError

SURE = ("id2label", "label_names", "class_names", "idx_to_class", "index_to_name", "label2id", "class_to_idx")
"""Keys that hold labels wherever they stand; others may name other things, as the tensors of a graph."""
KEYS = (*SURE, "names", "labels", "classes", "label_map")
"""Where Ultralytics, Hugging Face, timm, torchvision, TorchServe and others keep them, in any case of letters."""
TABLES = (*KEYS, "categories")
MOST = 10**9
"""Largest number that is a name."""
SHOWN = 5
"""Numbers in a message."""
BY_NAME = re.compile(r"(2|to)_?(id|idx|index)|class_indices", re.IGNORECASE)
BY_NUMBER = re.compile(r"(id|idx|index)_?(2|to)|names$", re.IGNORECASE)
"""What a table from number to name is called, and one from name to number: asked where both are numbers."""
NUMBERED = re.compile(r"([0-9]{1,9})(\s*[\s:,;]\s*)(\S.*)")
NUMBER = re.compile(r"\s*-?[0-9]{1,9}\s*")
JSON = re.compile(r"[\[{]\s*['\"\d\[{]")
YAML = re.compile(r"(?m)^names[ \t]*:(?=[ \t]*([\[{#]|$))")
FLOW = re.compile(r"[ \t]*[\[{](.*?)[\]}]", re.DOTALL)
ITEM = re.compile(r"[ \t]*(?:-|([0-9]{1,9})[ \t]*:)[ \t]+(.+)")
QUOTED = re.compile(r"""('[^']*(?:''[^']*)*'|"[^"\\]*(?:\\.[^"\\]*)*")[ \t]*(?:[ \t]#.*)?""")
COMMENT = re.compile(r"(?:^|[ \t])#")
Rows = list[tuple[int, str, str]]
"""A number, its line, and the name in it."""


class Names(NamedTuple):
    """Names in the order of their classes."""

    names: list[str]
    lines: list[str]
    """The whole lines, in the same order, if numbers at their start were read as numbers of classes."""
    numbers: list[int]
    """The number that stands with each name, growing; empty for names without."""


def names_in(value: Any, where: str, key: str) -> Names:
    """Return the names of a list or a table, or of a text that holds one, or one a line.

    Args:
        value: The list, table or text.
        where: What it is called in messages.
        key: What its entry or file is called, which may say whether a table is from number to name or the other way.

    Raises:
        InputError: If it begins as JSON and is none, holds what is no name, leaves out the number of a class, or does
            not say which of two numbers is the name.
    """
    if isinstance(value, str):
        value = _read(value.strip(), where)
    if isinstance(value, str):
        lines = lines_of(value)
        rows = by_numbers(lines, where)
        return Names([name for *_, name in rows] or lines, [line for _, line, _ in rows], [n for n, *_ in rows])
    while isinstance(value, Mapping) and (inner := _table_in(value, TABLES)) is not None:
        key, value = inner
    numbers: list[int] = []
    if isinstance(value, Mapping):
        table = _ordered(value, where, key)
        value, numbers = list(table.values()), list(table)
    found = _named(list(value), where) if isinstance(value, (list, tuple)) else Names([], [], [])
    return found if found.numbers else found._replace(numbers=numbers)


def left_out(numbers: Collection[int], first: int) -> list[int]:
    """Return the whole numbers that are missing from the first to the largest, a few of them."""
    known = set(numbers)
    return list(islice((n for n in range(first, max(known, default=0)) if n not in known), SHOWN + 1))


def listed(numbers: Sequence[int]) -> str:
    """Return some numbers as a text."""
    return ", ".join(map(str, numbers[:SHOWN])) + (", ..." if len(numbers) > SHOWN else "")


def _require_all(numbers: Collection[int], where: str) -> None:
    """Refuse numbers of classes of which one is missing, or negative: those behind it would move."""
    fix = "name each class, counted from 0, or give the labels as a JSON list"
    if min(numbers, default=0) < 0:
        raise InputError(f"{where} numbers its labels, one of them {min(numbers)}", fix=fix)
    if missing := left_out(numbers, 1 if 0 not in numbers and 1 in numbers else 0):
        raise InputError(f"{where} numbers its labels and has none for {listed(missing)}", fix=fix)


def _table_in(table: Mapping[Any, Any], keys: Sequence[str]) -> tuple[str, Any] | None:
    return next(((k, table[k]) for k in keys if table.get(k) and isinstance(table[k], (Mapping, list, tuple))), None)


def key_of_labels(text: str) -> str | None:
    """Return the first of ``TABLES`` under which a text, if it is a table, holds another one or a list."""
    table = _literal(text) if text.lstrip().startswith("{") else None
    found = _table_in(table, TABLES) if isinstance(table, Mapping) else None
    return found and found[0]


def lines_of(text: str) -> list[str]:
    """Return the lines that are not empty, without quotes; of a single line what stands between its commas."""
    full = [line.strip() for line in text.splitlines() if line.strip()]
    listed = len(full) > 1 and all(line.startswith("- ") for line in full)  # a list in YAML
    lines = [_without_comment(line[2:].strip()) if listed else _unquoted(line) for line in full]
    return (_parts(lines[0]) or lines) if len(lines) == 1 else lines


def _parts(line: str) -> list[str]:
    mark = next((mark for mark in ",;" if mark in line), ",")
    return [_unquoted(part) for part in line.split(mark) if part.strip()]


def by_numbers(lines: Sequence[str], where: str) -> Rows:
    """Return lines that all begin with a number, counted from 0 or 1, with their names, ordered by it.

    Nothing is returned for others, nor where only a blank stands behind the number and the names without it would be
    the same, as of ``1 euro`` and ``2 euro``: there the number is part of the name. A heading of columns is left out.

    Raises:
        InputError: If a number is left out.
    """
    found = [NUMBERED.fullmatch(line) for line in lines]
    if len(found) > 2 and found[0] is None and all(m is not None and m[2].strip(" ") for m in found[1:]):
        lines, found = lines[1:], found[1:]
    table = {int(m[1]): m for m in found if m is not None}
    if len(table) < len(lines) or min(table, default=2) > 1:
        return []
    ordered = [table[number] for number in sorted(table)]
    names = [_unquoted(m[3]) for m in ordered]
    repeated = len({unicodedata.normalize("NFC", name) for name in names}) < len(names)
    if repeated and any(not m[2].strip(" ") for m in ordered):
        return []
    _require_all(table, where)
    return [(int(m[1]), m[0], name) for m, name in zip(ordered, names, strict=True)]


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"" else text


def _read(text: str, where: str) -> Any:
    """Return the list or table that a text holds as JSON, as Python writes it, or in YAML; else the text."""
    if found := YAML.search(text):
        return _yaml(text[found.end() :], where)
    literal = _literal(text) if text.startswith(("[", "{", "(")) else None
    if literal is None and JSON.match(text):
        raise InputError(f"{where} begins as JSON and is none", fix="mend it, or write one label a line")
    return text if literal is None else literal


def _literal(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python's of a backslash in a name
                return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return None


def _yaml(text: str, where: str) -> Any:
    """Return what stands behind ``names:`` in a YAML file, as Ultralytics writes it: a list, or a numbered table."""
    if flow := FLOW.match(text):
        read = _literal(flow[0].strip())
        parts = _parts(flow[1])
        rows = by_numbers(parts, where) if read is None and flow[0].lstrip().startswith("{") else []
        return read if read is not None else {number: name for number, _, name in rows} or parts
    names: dict[int, str] = {}
    for line in text.splitlines():
        item = ITEM.fullmatch(line)
        if item:
            names[int(item[1]) if item[1] else len(names)] = _without_comment(item[2])
        elif line.strip() and not line.lstrip().startswith("#"):
            break
    return names


def _without_comment(text: str) -> str:
    """Return a name in YAML: what its quotes hold, else what stands before a comment."""
    if quoted := QUOTED.fullmatch(text.rstrip()):
        name = _unquoted(quoted[1])
        return name.replace("''", "'") if quoted[1][0] == "'" else name
    return COMMENT.split(text, maxsplit=1)[0].strip()


def _ordered(table: Mapping[Any, Any], where: str, key: str) -> dict[int, Any]:
    """Return the names of a table by their numbers, in their order: from number to name, or from name to number.

    Nothing is returned where those are no whole numbers, or one is there twice.

    Raises:
        InputError: If a number is left out, or it is not said which of two is the name.
    """
    rows = list(table.items())
    if _is_by_name(table, where, key):
        rows = [(number, name) for name, number in rows]
    by_number = {_whole(number): name for number, name in rows}
    numbers = [number for number in by_number if number is not None]
    if len(numbers) < len(rows):
        return {}
    _require_all(numbers, where)
    return {number: by_number[number] for number in sorted(numbers)}


def _is_by_name(table: Mapping[Any, Any], where: str, key: str) -> bool:
    """Tell whether a table is from name to number.

    Where both are numbers, what the table is called decides, else which of them count without a gap, from 0 or else
    from 1. If both do, numbers as keys or texts as values are taken to be from number to name.

    Raises:
        InputError: If nothing of that tells.
    """
    keys = [n for k in table if (n := _whole(k)) is not None]
    values = [n for v in table.values() if (n := _whole(v)) is not None]
    if len(keys) < len(table) or len(values) < len(table):
        return len(values) == len(table)
    if BY_NAME.search(key) or BY_NUMBER.search(key):
        return BY_NAME.search(key) is not None
    for first in (0, 1):
        places = list(range(first, first + len(table)))
        counting = sorted(keys) == places, sorted(values) == places
        told = not all(isinstance(k, str) for k in table) or any(isinstance(v, str) for v in table.values())
        if all(counting) and not told and {*zip(keys, values, strict=True)} != {*zip(values, keys, strict=True)}:
            raise InputError(
                f"{where} is a table of numbers, and either may be the label",
                found=", ".join(f"{k}: {v}" for k, v in islice(table.items(), SHOWN)),
                fix="call it class_to_idx or idx_to_class, or give one label a line",
            )
        if any(counting):
            return not counting[0]
    return False


def _whole(value: Any) -> int | None:
    """Return the whole number that a value is or says; None for any other value."""
    if isinstance(value, str):
        return int(value) if NUMBER.fullmatch(value) else None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _named(entries: list[Any], where: str) -> Names:
    """Return the names of entries: texts, numbers, pairs as Keras has them, or tables with a name.

    Tables are taken in the order of their ``id`` if each has a whole number of its own there, else as they stand;
    COCO's leave some out.
    """
    ids: list[int] = []
    if entries and all(isinstance(e, Mapping) and "name" in e for e in entries):
        by_id = {number: e["name"] for e in entries if (number := _whole(e.get("id"))) is not None}
        ids = sorted(by_id) if len(by_id) == len(entries) else []
        entries = [by_id[number] for number in ids] or [e["name"] for e in entries]
    if entries and all(isinstance(e, (list, tuple)) and len(e) == 2 for e in entries):
        entries = [e[1] for e in entries]
    wrong = [e for e in entries if not isinstance(e, (str, int, float)) or (isinstance(e, int) and abs(e) > MOST)]
    if wrong:
        raise InputError(f"{where} holds what is no label", found=_shown(wrong[0]), fix="give one label a line")
    return Names([str(e).strip() for e in entries], [], ids)


def _shown(value: Any) -> str:
    try:
        return repr(value)[:80]
    except (ValueError, RecursionError):  # a number of thousands of digits, or a list in thousands of lists
        return f"a {type(value).__name__}"
