"""Walks over a graph and the graphs inside it: branches of If, bodies of Loop and Scan. And names that are free."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import numpy_helper

STANDARD = ("", "ai.onnx")
"""Domains of ONNX's own operators; one of another domain may share the name of an operator, and nothing else."""


def is_standard(node: onnx.NodeProto, *operators: str) -> bool:
    """Tell whether a node is one of some operators of ONNX itself."""
    return node.domain in STANDARD and node.op_type in operators


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs inside a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def with_bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and all graphs inside it."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from with_bodies(body)


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a model's graph, of the graphs inside it, and of its functions."""
    for graph in with_bodies(model.graph):
        yield from graph.node
    for function in model.functions:
        for node in function.node:
            yield node
            for body in bodies(node):
                yield from (n for g in with_bodies(body) for n in g.node)


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the constants of a model, wherever they are."""
    for graph in with_bodies(model.graph):
        yield from graph.initializer
    for node in all_nodes(model):
        yield from (a.t for a in node.attribute if a.HasField("t"))


def known_tensors(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the initializers and Constants of a graph, and of those inside it, by the name of their tensor."""
    graphs = list(with_bodies(graph))
    known = {t.name: t for g in graphs for t in g.initializer}
    for node in (n for g in graphs for n in g.node if is_standard(n, "Constant")):
        for a in node.attribute:
            if a.name == "value":
                known[node.output[0]] = a.t
            elif a.name == "value_float":
                known[node.output[0]] = numpy_helper.from_array(np.asarray(a.f, np.float32))
    return known


def read_inside(graph: onnx.GraphProto) -> set[str]:
    """Return the names that the graphs inside a graph read; they may be tensors of the graph itself."""
    inside = (g for node in graph.node for body in bodies(node) for g in with_bodies(body))
    return {name for g in inside for name in (*(i for n in g.node for i in n.input), *(o.name for o in g.output))}


def read_by(node: onnx.NodeProto) -> set[str]:
    """Return what a node reads of the graph around it; the graphs inside it do, too."""
    read = set(node.input)
    for body in bodies(node):
        inside = [n for graph in with_bodies(body) for n in graph.node]
        names = {name for n in inside for name in n.input} | {o.name for g in with_bodies(body) for o in g.output}
        own = {name for n in inside for name in n.output}
        own.update(v.name for g in with_bodies(body) for v in (*g.input, *g.initializer))
        read |= names - own
    return read


def leading_to(graph: onnx.GraphProto, names: Iterable[str]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that some tensors depend on, the last first, and those inside them."""
    needed = set(names)
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed |= read_by(node)
            yield node
            yield from (n for body in bodies(node) for g in with_bodies(body) for n in g.node)


class FreeNames:
    """Gives names that nothing in a graph, and nothing that was named here, has."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._used: set[str] = set()
        for inside in with_bodies(graph):
            values = (*inside.input, *inside.output, *inside.initializer, *inside.value_info)
            self._used.update(v.name for v in values)
            for node in inside.node:
                self._used.update((node.name, *node.input, *node.output))

    def __call__(self, wanted: str) -> str:
        """Return a name, as it is wanted if that is free."""
        name = wanted
        if wanted in self._used:
            name = next(n for n in (f"{wanted}_{i}" for i in itertools.count(2)) if n not in self._used)
        self._used.add(name)
        return name
