"""Gemm in the one form that the rest of an export knows: factors of 1, and a bias of one value for each output."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qdeploy.export.graph.walk import FreeNames, is_standard


def normalise_gemms(graph: onnx.GraphProto) -> None:
    """Let the constant bias of each Gemm be ``[N]``, and fold constant factors into weight and bias.

    ONNX allows any bias that broadcasts to ``[M, N]``, and factors alpha and beta. A bias that is not the same in each
    row is added by a node of its own.
    """
    constants = {i.name: i for i in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    names = FreeNames(graph)
    for node in graph.node:
        nodes.append(node)
        if is_standard(node, "Gemm") and node.input[1] in constants:
            nodes += _Gemm(graph, node, constants, names).normalised()
    del graph.node[:]
    graph.node.extend(nodes)


class _Gemm:
    def __init__(
        self, graph: onnx.GraphProto, node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], names: FreeNames
    ) -> None:
        self.graph, self.node, self.constants, self.names = graph, node, constants, names
        self.given = {a.name: helper.get_attribute_value(a) for a in node.attribute}

    def normalised(self) -> list[onnx.NodeProto]:
        """Rewrite the node; gives the nodes that are to follow it."""
        weight = self._values(1)
        alpha, beta = (float(self.given.get(name, 1.0)) for name in ("alpha", "beta"))
        if alpha != 1.0:
            self._replace(1, weight * np.float32(alpha), "scaled")
            self._forget("alpha")
        if len(self.node.input) < 3 or not self.node.input[2] or beta == 0.0:
            del self.node.input[2:]
            self._forget("beta")
            return []
        if self.node.input[2] not in self.constants:
            return []
        outputs = weight.shape[0] if self.given.get("transB") else weight.shape[1]
        return self._with_bias(self._values(2) * np.float32(beta), outputs)

    def _with_bias(self, bias: NDArray[Any], outputs: int) -> list[onnx.NodeProto]:
        self._forget("beta")
        if bias.ndim == 0 or bias.size == bias.shape[-1]:
            self._replace(2, np.array(np.broadcast_to(bias.reshape(-1), (outputs,))), "row")
            return []
        self._replace(2, bias, "scaled")
        added = self.node.input.pop(2)
        (end,) = self.node.output
        product = self.names(f"{end}_product")
        self.node.output[0] = product
        return [helper.make_node("Add", [product, added], [end], self.names(f"{self.node.name}/Add"))]

    def _values(self, index: int) -> NDArray[Any]:
        return numpy_helper.to_array(self.constants[self.node.input[index]])

    def _replace(self, index: int, values: NDArray[Any], what: str) -> None:
        """Read other values, which no other node reads; leave it if they are the same."""
        old = self._values(index)
        if old.shape == values.shape and np.array_equal(old, values):
            return
        name = self.names(f"{self.node.input[index]}_{what}")
        tensor = numpy_helper.from_array(values, name)
        self.constants[name] = tensor
        self.graph.initializer.append(tensor)
        self.node.input[index] = name

    def _forget(self, attribute: str) -> None:
        kept = [a for a in self.node.attribute if a.name != attribute or a.f == 1.0]
        del self.node.attribute[:]
        self.node.attribute.extend(kept)
