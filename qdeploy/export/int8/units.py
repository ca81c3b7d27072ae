"""The parts of a graph that INT8 may leave in float: modules, their children, and what is repeated in every block."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from qdeploy.export.graph.walk import is_standard
from qdeploy.export.int8.divisors import feeding_divisions
from qdeploy.export.int8.encodings import Encoding

MAX_MODULES = 20
MAX_ROLES = 8
MATRIX_OPERATORS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A module of the model, or one of its layers."""

    name: str
    nodes: frozenset[str]
    """Names of its nodes in the graph."""


@dataclass(frozen=True)
class _Node:
    name: str
    path: tuple[str, ...]
    """The module it comes from, then the node itself."""
    is_layer: bool


def units_of(
    model: onnx.ModelProto, encoding: Encoding, max_modules: int = MAX_MODULES, max_roles: int = MAX_ROLES
) -> list[Unit]:
    """Return what may stay in float, at most so many modules and so many roles.

    Modules come from the outside in, a whole level at a time while it fits, then the largest of the next; a module
    without children is split into its layers. A role is every module of one name, such as ``*.excite``, or every
    ``Gelu``. Nodes are named ``module.child/Operator`` (``qdeploy.export.sources.trace``).
    """
    may = quantizable(model, encoding)
    nodes = [
        _Node(n.name, (*_steps(n.name), n.name), is_standard(n, *MATRIX_OPERATORS))
        for n in model.graph.node
        if n.name in may
    ]
    units: list[Unit] = []
    level = _parts((), nodes)
    while level and len(units) + len(level) <= max_modules:
        units += [_unit(prefix, inside) for prefix, inside in level.items()]
        splits = [_parts(p, inside) for p, inside in level.items()]
        level = {p: inside for parts in splits if len(parts) > 1 for p, inside in parts.items()}
    units += _largest([_unit(p, inside) for p, inside in level.items()], max_modules - len(units))
    return units + _largest(_roles(model, nodes, {u.nodes for u in units}), max_roles)


def quantizable(model: onnx.ModelProto, encoding: Encoding) -> frozenset[str]:
    """Return the names of the nodes that an encoding can write as INT8 and that need not stay in float."""
    return _candidates(model, encoding) - feeding_divisions(model.graph)


def feeding(model: onnx.ModelProto, encoding: Encoding) -> frozenset[str]:
    """Return the names of those that an encoding could write, and that make what must not be rounded."""
    return _candidates(model, encoding) & feeding_divisions(model.graph)


def _candidates(model: onnx.ModelProto, encoding: Encoding) -> frozenset[str]:
    return frozenset(n.name for n in model.graph.node if is_standard(n, *encoding.operators, "Gelu"))


def disjoint(units: Iterable[Unit]) -> list[Unit]:
    """Keep each unit that shares no node with one before it."""
    kept: list[Unit] = []
    for unit in units:
        if all(not unit.nodes & other.nodes for other in kept):
            kept.append(unit)
    return kept


def nodes_of(units: Iterable[Unit]) -> frozenset[str]:
    """Return the names of all nodes of some units."""
    return frozenset().union(*(u.nodes for u in units))


def modules_of(node: str) -> list[str]:
    """Return the names of the modules that a node is in, from the outside in, e.g. ``stages``, ``stages.1``."""
    steps = _steps(node)
    return [".".join(steps[: i + 1]) for i in range(len(steps))]


def _steps(node: str) -> list[str]:
    """Return the path of the module that a node is in; other tools write ``/module/child/Operator``."""
    return [step for step in re.split(r"[./]", node.rpartition("/")[0]) if step]


Parts = dict[tuple[str, ...], list[_Node]]


def _parts(prefix: tuple[str, ...], nodes: list[_Node]) -> Parts:
    """Split a module's nodes by the next step of their paths; a step that all share is no split."""
    depth = len(prefix)
    while True:
        parts: Parts = {}
        for node in nodes:
            parts.setdefault(node.path[: depth + 1], []).append(node)
        parts = {p: inside for p, inside in parts.items() if any(n.is_layer for n in inside)}
        if len(parts) != 1 or next(iter(parts)) == nodes[0].path or depth >= max(len(n.path) for n in nodes):
            return parts
        depth += 1


def _roles(model: onnx.ModelProto, nodes: list[_Node], known: set[frozenset[str]]) -> list[Unit]:
    members: dict[str, list[_Node]] = {}
    modules: dict[str, set[tuple[str, ...]]] = {}
    for node in nodes:
        for depth, step in enumerate(node.path[:-1]):
            if not step.isdigit():
                members.setdefault(step, []).append(node)
                modules.setdefault(step, set()).add(node.path[: depth + 1])
    roles = [_unit((f"*.{step}",), members[step]) for step, where in modules.items() if len(where) > 1]
    gelus = frozenset(n.name for n in model.graph.node if is_standard(n, "Gelu"))
    if gelus:
        roles.append(Unit(name="every Gelu", nodes=gelus))
    return [r for r in roles if r.nodes not in known]


def _largest(units: list[Unit], count: int) -> list[Unit]:
    return sorted(units, key=lambda u: -len(u.nodes))[: max(count, 0)]


def _unit(prefix: tuple[str, ...], nodes: list[_Node]) -> Unit:
    name = prefix[-1] if "/" in prefix[-1] else ".".join(prefix)
    return Unit(name=name, nodes=frozenset(n.name for n in nodes))
