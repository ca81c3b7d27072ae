"""Functions of one value: ONNX's operators by the words of ``arithmetic.FUNCTIONS``."""

from __future__ import annotations

from qdeploy.native.lowering import Lowering, clamp_limits
from qdeploy.native.onnx_graph import Node

PLAIN = {
    "Erf": "erf",
    "Exp": "exp",
    "HardSwish": "hardswish",
    "Sigmoid": "sigmoid",
    "Sqrt": "sqrt",
    "Tanh": "tanh",
}


def function_of(low: Lowering, node: Node) -> tuple[str, tuple[float, float] | None] | None:
    """Return a node's function and its limits; None if it is none of ours."""
    if node.kind in ("Relu", "Clip"):
        return "clamp", clamp_limits(low, node)
    if node.kind == "Gelu" and node.attributes.get("approximate", b"none") == b"none":
        return "gelu", None
    slope, offset = (node.attributes.get(k, d) for k, d in (("alpha", 0.2), ("beta", 0.5)))
    if node.kind == "HardSigmoid" and abs(slope - 1 / 6) < 1e-6 and offset == 0.5:
        return "hardsigmoid", None
    return (PLAIN[node.kind], None) if node.kind in PLAIN else None
