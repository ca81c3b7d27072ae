"""What must not be rounded: values that are divided by, or of which a root or a logarithm is taken.

Near zero a step of an 8-bit range is a large relative error, and what is rounded to zero gives infinity or NaN where
the float model gives a number: of a black image, say, whose features are small and not zero.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from qdeploy.export.graph.walk import is_standard

DELICATE = {"Div": 1, "Reciprocal": 0, "Sqrt": 0, "Log": 0, "Pow": 0, "LpNormalization": 0}
"""Which input of each operator must not be rounded; of ``Pow`` only where the exponent is no whole number >= 0."""
MAKERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""What these make stays in float, and what they read need not: they add up many values."""
SMOOTH = (
    *("Exp", "Sigmoid", "Softplus", "Softmax"),
    *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"),
)
"""What these read may be rounded: they turn an error of their input into a small share of their output."""


def feeding_divisions(graph: onnx.GraphProto) -> frozenset[str]:
    """Return the names of the nodes that make such values, from the last layers before them on, or read them.

    A layer that reads them may do so in INT8; what works on them one by one, as x does in x / |x|, may not.
    """
    makers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    waiting = [
        node.input[place]
        for node in graph.node
        for kind, place in DELICATE.items()
        if is_standard(node, kind) and not (kind == "Pow" and _is_power(node, constants))
    ]
    found: set[str] = set()
    delicate: set[str] = set()
    while waiting:
        node = makers.get(waiting.pop())
        if node is None or node.name in found:
            continue
        found.add(node.name)
        delicate.update(node.output)
        if not is_standard(node, *MAKERS, *SMOOTH):
            waiting += [name for name in node.input if name not in constants]
    readers = {n.name for n in graph.node if not is_standard(n, *MAKERS) and not delicate.isdisjoint(n.input)}
    return frozenset(found | readers)


def _is_power(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    """Return whether a ``Pow`` is a product of its base: its exponent is a whole number, 0 or more."""
    if node.input[1] not in constants:
        return False
    exponent = numpy_helper.to_array(constants[node.input[1]])
    return bool((exponent >= 0).all() and (exponent == np.round(exponent)).all())
