"""Names of classes as other tools write them: a line each, numbered, as JSON, as Python, or in a YAML file."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qdeploy.core.errors import InputError

KEYS = ("names", "id2label", "label_names", "labels", "classes", "class_names")
"""Where Ultralytics, Hugging Face, timm and others keep them."""
TABLES = (*KEYS, "categories")
NUMBERED = re.compile(r"(\d+)\s*[\s:,;]\s*(\S.*)")
JSON = re.compile(r"[\[{]\s*['\"\d\[{]")
YAML = re.compile(r"(?m)^names[ \t]*:(?=[ \t]*([\[{#]|$))")
FLOW = re.compile(r"[ \t]*[\[{](.*?)[\]}]", re.DOTALL)
ITEM = re.compile(r"[ \t]*(?:-|(\d+)[ \t]*:)[ \t]+(.+)")


def names_in(value: Any, where: str) -> list[str]:
    """Return the names of a list or a table, or of a text that holds one, or one a line.

    Raises:
        InputError: If it begins as JSON and is none, or holds what is no name.
    """
    if isinstance(value, str):
        value = _read(value.strip(), where)
    if isinstance(value, str):
        return by_numbers(lines_of(value)) or lines_of(value)
    if isinstance(value, Mapping):
        inner = next((value[k] for k in TABLES if isinstance(value.get(k), (Mapping, list, tuple))), None)
        return names_in(inner, where) if inner is not None else _named(_ordered(value), where)
    return _named(list(value), where) if isinstance(value, (list, tuple)) else []


def lines_of(text: str) -> list[str]:
    """Return the lines that are not empty, without quotes; of a single line what stands between its commas."""
    lines = [_unquoted(line) for line in text.splitlines() if line.strip()]
    return _parts(lines[0]) if len(lines) == 1 and "," in lines[0] else lines


def _parts(line: str) -> list[str]:
    return [_unquoted(part) for part in line.split(",") if part.strip()]


def by_numbers(lines: Sequence[str]) -> list[str]:
    """Return the names of lines that all begin with a number, counted from 0 or 1, by it; nothing for others."""
    found = [NUMBERED.fullmatch(line) for line in lines]
    table = {int(m[1]): _unquoted(m[2]) for m in found if m is not None}
    if len(table) < len(lines) or sorted(table) not in (list(range(len(table))), list(range(1, len(table) + 1))):
        return []
    return [table[number] for number in sorted(table)]


def number_of(line: str) -> int:
    """Return the number that such a line begins with."""
    found = NUMBERED.fullmatch(line)
    assert found is not None
    return int(found[1])


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"" else text


def _read(text: str, where: str) -> Any:
    """Return the list or table that a text holds as JSON, as Python writes it, or in YAML; else the text."""
    if found := YAML.search(text):
        return _yaml(text[found.end() :])
    literal = _literal(text) if text.startswith(("[", "{", "(")) else None
    if literal is None and JSON.match(text):
        raise InputError(f"{where} begins as JSON and is none", fix="mend it, or write one label a line")
    return text if literal is None else literal


def _literal(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return None


def _yaml(text: str) -> Any:
    """Return what stands behind ``names:`` in a YAML file, as Ultralytics writes it: a list, or a numbered table."""
    if flow := FLOW.match(text):
        read = _literal(flow[0].strip())
        return read if read is not None else by_numbers(parts := _parts(flow[1])) or parts
    names: dict[int, str] = {}
    for line in text.splitlines():
        item = ITEM.fullmatch(line.split(" #")[0].rstrip())
        if item:
            names[int(item[1]) if item[1] else len(names)] = _unquoted(item[2])
        elif line.strip() and not line.lstrip().startswith("#"):
            break
    return names


def _ordered(table: Mapping[Any, Any]) -> list[Any]:
    """Return the names of a table in the order of their numbers: from number to name, or from name to number."""
    try:
        if all(isinstance(v, int) for v in table.values()):
            table = {number: name for name, number in table.items()}
        by_number = {int(k): v for k, v in table.items()}
    except (TypeError, ValueError):
        return []
    return [by_number[number] for number in sorted(by_number)]


def _named(entries: list[Any], where: str) -> list[str]:
    """Return the names of entries: texts, numbers, pairs as Keras has them, or tables with a name."""
    if entries and all(isinstance(e, Mapping) and "name" in e for e in entries):
        entries = [e["name"] for e in sorted(entries, key=lambda e: int(e.get("id", 0)))]
    if entries and all(isinstance(e, (list, tuple)) and len(e) == 2 for e in entries):
        entries = [e[1] for e in entries]
    wrong = next((e for e in entries if not isinstance(e, (str, int, float))), None)
    if wrong is not None:
        raise InputError(f"{where} holds what is no label", found=repr(wrong)[:80], fix="give one label a line")
    return [str(e) for e in entries]
