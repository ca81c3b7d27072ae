"""Seeded changes of graphs: what a damaged, forged or strange file may hold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import numpy_helper

Random = np.random.Generator
INTEGERS = (-(2**63), -(2**31), -300, -3, -2, -1, 0, 1, 2, 3, 4, 7, 17, 300, 2**16, 2**31 - 1, 2**31, 2**62)
FLOATS = (0.0, -0.0, 1e-45, -1.0, 1.0, 1e-30, 3e38, float("inf"), float("-inf"), float("nan"))


def mutated(model: onnx.ModelProto, random: Random) -> onnx.ModelProto:
    """Return a copy with one to three changes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for _ in range(random.integers(1, 4)):
        CHANGES[random.integers(len(CHANGES))](copy.graph, random)
    return copy


def _attribute(graph: onnx.GraphProto, random: Random) -> None:
    found = [a for n in graph.node for a in n.attribute if a.type in (a.INT, a.INTS, a.FLOAT)]
    if not found:
        return
    one = found[random.integers(len(found))]
    if one.type == one.FLOAT:
        one.f = float(random.choice(FLOATS))
    elif one.type == one.INT:
        one.i = near(one.i, random)
    elif random.integers(4) == 0:
        del one.ints[random.integers(len(one.ints)) :]
    elif one.ints:
        i = random.integers(len(one.ints))
        one.ints[i] = near(one.ints[i], random)


def near(value: int, random: Random) -> int:
    """Return another number: often a neighbour, sometimes one of the extremes."""
    return int(value + random.integers(-2, 3)) if random.integers(3) else int(INTEGERS[random.integers(len(INTEGERS))])


def _constant(graph: onnx.GraphProto, random: Random) -> None:
    one = graph.initializer[random.integers(len(graph.initializer))]
    values = numpy_helper.to_array(one).copy()
    flat = values.reshape(-1)
    if not flat.size:
        return
    i = random.integers(flat.size)
    if values.dtype == np.float32:
        many = random.integers(2) == 0
        flat[slice(None) if many else i] *= np.float32(random.choice([0, -1, 0.1, 7, 1e20, 1e-20]))
        if random.integers(6) == 0:
            flat[i] = random.choice(FLOATS)
    elif values.dtype == np.int64:
        flat[i] = near(int(flat[i]), random)
    else:
        ends = np.iinfo(values.dtype)
        flat[i] = random.integers(ends.min, ends.max + 1)
    one.CopyFrom(numpy_helper.from_array(values, one.name))


def _shape(graph: onnx.GraphProto, random: Random) -> None:
    one = graph.initializer[random.integers(len(graph.initializer))]
    values = numpy_helper.to_array(one)
    shapes = [values.reshape(-1), values.T, values[None], values.reshape(-1)[: values.size // 2]]
    one.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(shapes[random.integers(len(shapes))]), one.name))


def _order(graph: onnx.GraphProto, random: Random) -> None:
    nodes = list(graph.node)
    i, j = random.integers(len(nodes), size=2)
    nodes[i], nodes[j] = nodes[j], nodes[i]
    del graph.node[:]
    graph.node.extend(nodes)


def _missing(graph: onnx.GraphProto, random: Random) -> None:
    if random.integers(2):
        del graph.node[random.integers(len(graph.node))]
        return
    node = graph.node[random.integers(len(graph.node))]
    if node.input:
        del node.input[random.integers(len(node.input))]


def _wire(graph: onnx.GraphProto, random: Random) -> None:
    node = graph.node[random.integers(len(graph.node))]
    names = [n for other in graph.node for n in other.output] + [i.name for i in graph.initializer] + [""]
    if node.input:
        node.input[random.integers(len(node.input))] = names[random.integers(len(names))]


def _kind(graph: onnx.GraphProto, random: Random) -> None:
    nodes = graph.node
    nodes[random.integers(len(nodes))].op_type = nodes[random.integers(len(nodes))].op_type


CHANGES: tuple[Callable[[onnx.GraphProto, Random], None], ...] = (
    *(_attribute, _attribute, _constant, _constant, _shape),
    *(_order, _missing, _wire, _kind),
)
