"""Metadata and operator counts of an ONNX file, read from its protobuf fields without the onnx library.

Numbers of fields are those of ``onnx.proto3``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_FIXED_BYTES = {1: 8, 5: 4}
"""Length in bytes of protobuf's wire types of fixed length."""
_GRAPH, _OPSETS, _METADATA, _FUNCTIONS = 7, 8, 14, 25  # of a model
_NODE, _OUTPUT = 1, 12  # of a graph
_OPERATOR = 4  # of a node
_INSIDE = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Where tensors are: the fields of each kind of message that hold another."""
_EXTERNAL_DATA = 13  # of a tensor


@dataclass(frozen=True)
class Entry:
    """One of ``metadata_props``."""

    key: str
    value: str
    start: int
    """Offset of the value in the file."""


def metadata_entries(data: bytes) -> Iterator[Entry]:
    """Return the ``metadata_props``; raises ValueError, IndexError or UnicodeDecodeError if this is no ONNX file."""
    for start, end in _parts(data, _METADATA):
        _, key_start, key_end = field(data, start)
        _, value_start, value_end = field(data, key_end)
        if value_end != end:
            raise ValueError("metadata entry of unexpected length")
        yield Entry(data[key_start:key_end].decode(), data[value_start:value_end].decode(), value_start)


def operator_counts(data: bytes) -> dict[str, int]:
    """Count the operators of the graph by type, those inside of If and Loop excepted."""
    counts = Counter(
        data[start:end].decode()
        for graph in _parts(data, _GRAPH)
        for node in _parts(data, _NODE, *graph)
        for start, end in _parts(data, _OPERATOR, *node)
    )
    return dict(sorted(counts.items()))


def with_outputs(data: bytes, names: Iterable[str]) -> bytes:
    """Return a model that also gives some of its inner tensors.

    A second graph that has nothing but these outputs is appended: readers of protobuf merge it with the first.
    """
    values = b"".join(_written(_OUTPUT, _written(1, name.encode())) for name in names)
    return data + _written(_GRAPH, values)


def _written(number: int, contents: bytes) -> bytes:
    """Return a field of variable length."""
    return bytes([number << 3 | 2]) + _written_varint(len(contents)) + contents


def _written_varint(value: int) -> bytes:
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def graph_parts(data: bytes) -> list[tuple[int, int]]:
    """Return the spans of all that decides what a model computes: everything but what it says of itself."""
    spans, at = [], 0
    while at < len(data):
        number, start, at = field(data, at)
        if number in (_GRAPH, _FUNCTIONS, _OPSETS):
            spans.append((start, at))
    return spans


def has_external_data(data: bytes) -> bool:
    """Tell whether any tensor, wherever it is, has its values in another file.

    The word that such a tensor needs is looked for first, which is faster than the walk.
    """
    return b"location" in data and _any_external(data, "model", 0, len(data))


def _any_external(data: bytes, kind: str, at: int, end: int) -> bool:
    inside = _INSIDE.get(kind, {})
    while at < end:
        number, start, at = field(data, at)
        if kind == "tensor" and number == _EXTERNAL_DATA:
            return True
        if number in inside and _any_external(data, inside[number], start, at):
            return True
    return False


def _parts(data: bytes, wanted: int, at: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Return the spans of the fields of one number in a message, by default the whole file."""
    end = len(data) if end is None else end
    while at < end:
        number, start, at = field(data, at)
        if number == wanted:
            yield start, at


def field(data: bytes, at: int) -> tuple[int, int, int]:
    """Return the number and the span of the contents of the protobuf field that begins at an offset."""
    tag, at = varint(data, at)
    kind = tag & 7
    if kind == 0:
        _, end = varint(data, at)
    elif kind == 2:
        length, at = varint(data, at)
        end = at + length
    elif kind in _FIXED_BYTES:
        end = at + _FIXED_BYTES[kind]
    else:
        raise ValueError(f"unexpected wire type {kind}")
    if end > len(data) or tag >> 3 == 0:
        raise ValueError("field reaches beyond the file")
    return tag >> 3, at, end


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at an offset, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("varint too long")
