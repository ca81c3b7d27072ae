"""Nodes and constants of an ONNX file, read without the onnx library: a device that compiles its model has none.

Numbers of fields are those of ``onnx.proto3``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import ArtifactError
from qdeploy.core.onnx_bytes import field, varint

Array = NDArray[Any]

DTYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}
"""Types of tensors that are read: ONNX's number and numpy's name."""
_MODEL_GRAPH = 7
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12  # of a graph


@dataclass(frozen=True)
class Node:
    """One operator."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    domain: str = ""


@dataclass(frozen=True)
class Graph:
    """A model's graph."""

    nodes: list[Node]
    constants: dict[str, Array]
    inputs: list[str]
    outputs: list[str]


def read_graph(data: bytes) -> Graph:
    """Read the graph of an ONNX file.

    Raises:
        ArtifactError: If a constant is of a type that is not read, or the bytes are no ONNX file.
    """
    try:
        span = next((s, e) for n, s, e in _fields(data, 0, len(data)) if n == _MODEL_GRAPH)
        nodes: list[Node] = []
        constants: dict[str, Array] = {}
        inputs: list[str] = []
        outputs: list[str] = []
        for number, start, end in _fields(data, *span):
            if number == _NODE:
                nodes.append(_node(data, start, end))
            elif number == _INITIALIZER:
                name, value = _tensor(data, start, end)
                constants[name] = value
            elif number in (_INPUT, _OUTPUT):
                (inputs if number == _INPUT else outputs).append(_text(data, start, end, 1))
    except (StopIteration, IndexError, struct.error, UnicodeDecodeError) as error:
        raise ArtifactError("the model's graph cannot be read: it is no ONNX file, or is damaged") from error
    return Graph(nodes, constants, [i for i in inputs if i not in constants], outputs)


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    while at < end:
        number, start, at = field(data, at)
        yield number, start, at


def _text(data: bytes, at: int, end: int, wanted: int) -> str:
    return next((data[s:e].decode() for n, s, e in _fields(data, at, end) if n == wanted), "")


def _node(data: bytes, at: int, end: int) -> Node:
    inputs, outputs, kind, domain, attributes = [], [], "", "", {}
    for number, start, stop in _fields(data, at, end):
        if number == 1:
            inputs.append(data[start:stop].decode())
        elif number == 2:
            outputs.append(data[start:stop].decode())
        elif number == 4:
            kind = data[start:stop].decode()
        elif number == 5:
            name, value = _attribute(data, start, stop)
            attributes[name] = value
        elif number == 7:
            domain = data[start:stop].decode()
    return Node(kind, tuple(inputs), tuple(outputs), attributes, domain)


def _attribute(data: bytes, at: int, end: int) -> tuple[str, Any]:
    """Return name and value: a float, an integer, bytes, an array or a list; None for what is not read."""
    name, kind, found = "", 0, {}
    floats: list[float] = []
    integers: list[int] = []
    for number, start, stop in _fields(data, at, end):
        if number == 1:
            name = data[start:stop].decode()
        elif number == 20:
            kind = varint(data, start)[0]
        elif number == 7:
            floats += struct.unpack(f"<{(stop - start) // 4}f", data[start:stop])
        elif number == 8:
            integers += _integers(data, start, stop)
        else:
            found[number] = (start, stop)
    if kind in (6, 7):
        return name, floats if kind == 6 else integers
    if kind == 1:
        return name, struct.unpack("<f", data[slice(*found[2])])[0] if 2 in found else 0.0
    if kind == 2:
        return name, _signed(varint(data, found[3][0])[0]) if 3 in found else 0
    if kind == 3:
        return name, data[slice(*found[4])] if 4 in found else b""
    if kind == 4:
        return name, _tensor(data, *found[5])[1]
    return name, None


def _integers(data: bytes, at: int, end: int) -> list[int]:
    """Return the signed integers of a field, packed or alone."""
    values = []
    while at < end:
        value, at = varint(data, at)
        values.append(_signed(value))
    return values


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _tensor(data: bytes, at: int, end: int) -> tuple[str, Array]:
    shape: list[int] = []
    kind, name, raw = 0, "", None
    numbers: list[Any] = []
    for number, start, stop in _fields(data, at, end):
        if number == 1:
            shape += _integers(data, start, stop)
        elif number == 2:
            kind = varint(data, start)[0]
        elif number == 4:
            numbers += struct.unpack(f"<{(stop - start) // 4}f", data[start:stop])
        elif number in (5, 7):
            numbers += _integers(data, start, stop)
        elif number == 8:
            name = data[start:stop].decode()
        elif number == 9:
            raw = data[start:stop]
    if kind not in DTYPES:
        raise ArtifactError(f"the constant '{name}' is of ONNX type {kind}, which the native compiler does not read")
    dtype = np.dtype(DTYPES[kind])
    flat = np.frombuffer(raw, dtype) if raw is not None else np.array(numbers).astype(dtype)
    if flat.size != int(np.prod(shape)):
        raise ArtifactError(f"the constant '{name}' has {flat.size} values where its shape {shape} wants others")
    return name, flat.reshape(shape)
