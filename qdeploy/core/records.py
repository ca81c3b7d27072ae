"""Dataclasses read back from JSON, every field checked against its type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


class RecordError(ValueError):
    """A value is missing or not of its type; the text names its place in the document."""


def decode(kind: type[T], value: Any, place: str = "") -> T:
    """Return a value of a type from what a JSON document holds.

    Fields that the type does not know are passed over: a later version may have written them. Those that the document
    does not have take their defaults.

    Args:
        kind: A dataclass, ``dict``, ``tuple``, ``str``, ``int``, ``float``, ``bool``, or one of these or None.
        value: The part of the document; in it, what is a value of its dataclass already stays.
        place: Name of the value in the document, with dots.

    Raises:
        RecordError: If a value is missing or of another type.
    """
    return cast("T", _decode(kind, value, place))


def _decode(kind: Any, value: Any, place: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        if isinstance(value, cast("type[Any]", kind)):
            return value
        return _dataclass(cast("type[Any]", kind), _checked(dict, value, place), place)
    if origin in (Union, UnionType):
        (some,) = (a for a in arguments if a is not NoneType)
        return None if value is None else _decode(some, value, place)
    if origin in (dict, Mapping):
        found = _checked(dict, value, place)
        return {key: _decode(arguments[1], item, _below(place, key)) for key, item in found.items()}
    if origin is tuple:
        items = value if isinstance(value, tuple) else _checked(list, value, place)
        kinds = [arguments[0]] * len(items) if arguments[-1] is ... else list(arguments)
        if len(items) != len(kinds):
            raise RecordError(f"'{place}' has {len(items)} values, expected {len(kinds)}")
        return tuple(_decode(kinds[i], item, _below(place, str(i))) for i, item in enumerate(items))
    return _checked(kind, value, place)


def _dataclass(kind: type[Any], values: dict[str, Any], place: str) -> Any:
    hints, found = get_type_hints(kind), {}
    for field in fields(kind):
        name = _below(place, field.name)
        if field.name in values:
            found[field.name] = _decode(hints[field.name], values[field.name], name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise RecordError(f"'{name}' is missing")
    return kind(**found)


def _checked(kind: type[T], value: Any, place: str) -> T:
    if kind is float and type(value) is int:
        return cast("T", float(value))
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise RecordError(f"'{place}' is no {kind.__name__}")
    return value


def _below(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
