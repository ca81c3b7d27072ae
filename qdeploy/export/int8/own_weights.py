"""Integers of its own for each layer: of a weight that layers share, ONNX Runtime takes the integers only once."""

from __future__ import annotations

import onnx

from qdeploy.export.graph.walk import FreeNames, is_standard
from qdeploy.export.int8.units import MATRIX_OPERATORS


def give_layers_own_weights(graph: onnx.GraphProto, names: FreeNames) -> None:
    """Repeat the integers of a weight for every layer but the first that reads them.

    On a CPU without VNNI, where products must be exact, ONNX Runtime 1.32 writes int8 weights as uint8 layer by layer,
    and refuses a weight, or a zero point, that it has written already ("Attempt to replace the existing tensor").

    Args:
        graph: An INT8 graph; it is changed.
        names: Gives names that are free in it.
    """
    constants = {i.name: i for i in graph.initializer}
    ends = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants}
    read: set[str] = set()
    nodes = []
    for node in graph.node:
        end = ends.get(node.input[1]) if is_standard(node, *MATRIX_OPERATORS) else None
        if end is not None and end.output[0] in read:
            node.input[1] = names(f"{node.name}/weight")
            again = onnx.helper.make_node(
                "DequantizeLinear", list(end.input), [node.input[1]], names(f"{node.name}/DQ")
            )
            again.attribute.extend(end.attribute)
            for i in (0, 2):
                copy = graph.initializer.add()
                copy.CopyFrom(constants[end.input[i]])
                copy.name = again.input[i] = names(f"{node.name}/{('integers', '', 'zero_point')[i]}")
            nodes.append(again)
        elif end is not None:
            read.add(end.output[0])
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
