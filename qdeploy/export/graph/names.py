"""Names in a graph that came with a file: none of them can be one of ours."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import onnx

from qdeploy.export.graph.walk import with_bodies

FOREIGN_TENSOR = ":0"
"""Ending of every tensor that came with a file; ours end otherwise."""
OWN_NODES = tuple(
    f"model/{kind}"
    for kind in (
        *("Slice", "Cast", "Transpose", "Sub", "Mul", "Div", "ReduceSum", "Add", "Floor", "Gather", "CastTyped"),
        *("IdentityImage", "CastAnswer", "ReshapeAnswer", "MaxAnswer", "LogAnswer", "PadAnswer", "Identity", "Softmax"),
    )
)
"""Nodes that are put around a foreign graph."""


def name_nodes_apart(graph: onnx.GraphProto, ours: Iterable[str] = OWN_NODES) -> None:
    """Let no two nodes of a foreign graph, and none of ours, have one name: ONNX Runtime refuses such graphs."""
    used = set(ours)
    for inside in with_bodies(graph):
        for i, node in enumerate(inside.node):
            wanted = node.name or f"model/{node.op_type}_{i}"
            numbered = (f"{wanted}_{n}" for n in itertools.count(2))
            node.name = next(name for name in itertools.chain([wanted], numbered) if name not in used)
            used.add(node.name)


def name_tensors_apart(graph: onnx.GraphProto) -> None:
    """Return every tensor of a foreign graph an ending that no name of ours has.

    Ours are ``image``, ``logits``, ``x_scale``, ``x_quantized`` and so on.
    """
    for inside in with_bodies(graph):
        for names in (names for node in inside.node for names in (node.input, node.output)):
            names[:] = [n and f"{n}{FOREIGN_TENSOR}" for n in names]
        for value in (*inside.initializer, *inside.input, *inside.output, *inside.value_info):
            value.name += FOREIGN_TENSOR
        for sparse in inside.sparse_initializer:
            sparse.values.name += FOREIGN_TENSOR


def without_mark(name: str) -> str:
    """Return what a tensor was called in the file it came with."""
    return name.removesuffix(FOREIGN_TENSOR)
