"""Fused operators of ONNX Runtime's optimizer, written as the standard operators that they stand for.

A file that ONNX Runtime has saved after optimizing holds them (``optimized_model_filepath``). Definitions: ONNX
Runtime, docs/ContribOperators.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qdeploy.export.graph.walk import FreeNames, with_bodies

MICROSOFT = "com.microsoft"
LAYER_NORMALIZATION_OPSET = 17
FIRST_PARAMETER = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Elu": ("alpha",)}
"""Names of the attributes that the values of ``activation_params`` are."""


def expand_fused(model: onnx.ModelProto) -> None:
    """Replace the fused operators that are known; others of ONNX Runtime stay, and stay in float."""
    for graph in with_bodies(model.graph):
        if any(n.domain == MICROSOFT for n in graph.node):
            _Expansion(model, graph).run()


class _Expansion:
    """Rewrites the nodes of one graph."""

    def __init__(self, model: onnx.ModelProto, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.names = FreeNames(model.graph)
        self.ranks = {i.name: len(i.dims) for i in graph.initializer}
        self.ranks |= {
            v.name: len(v.type.tensor_type.shape.dim)
            for v in (*graph.value_info, *graph.input, *graph.output)
            if v.type.tensor_type.HasField("shape")
        }
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        """Write the nodes anew."""
        for node in self.graph.node:
            rule = RULES.get(node.op_type) if node.domain == MICROSOFT else None
            if rule is None or not rule(self, node, {a.name: helper.get_attribute_value(a) for a in node.attribute}):
                self.nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)

    def add(self, kind: str, inputs: list[str], output: str, like: onnx.NodeProto, **attributes: Any) -> str:
        """Append a standard node; gives its output."""
        name = self.names(f"{like.name or like.op_type}/{kind}")
        self.nodes.append(helper.make_node(kind, inputs, [output], name, **attributes))
        return output

    def new(self, like: onnx.NodeProto, what: str) -> str:
        """Return a name for a tensor inside."""
        return self.names(f"{like.output[0]}_{what}")

    def number(self, value: float, like: onnx.NodeProto) -> str:
        """Return a constant."""
        name = self.new(like, "constant")
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def activation(self, node: onnx.NodeProto, kind: str, parameters: list[float], before: str) -> None:
        """Write the activation that a fused product ends with."""
        if kind == "Clip":
            bounds = [self.number(value, node) for value in parameters]
            self.add(kind, [before, *bounds], node.output[0], node)
            return
        named = dict(zip(FIRST_PARAMETER.get(kind, ()), parameters, strict=False))
        self.add(kind, [before], node.output[0], node, **named)


def _conv(x: _Expansion, node: onnx.NodeProto, given: dict[str, Any]) -> bool:
    kind, parameters = _activation(given), list(given.pop("activation_params", []))
    inputs = [name for name in node.input[:3] if name]
    added = node.input[3] if len(node.input) > 3 else ""
    end = x.new(node, "product") if kind or added else node.output[0]
    x.add("Conv", inputs, end, node, **given)
    if added:
        end = x.add("Add", [end, added], x.new(node, "sum") if kind else node.output[0], node)
    if kind:
        x.activation(node, kind, parameters, end)
    return True


def _gemm(x: _Expansion, node: onnx.NodeProto, given: dict[str, Any]) -> bool:
    kind = _activation(given)
    parameters = [given.pop(f"activation_{p}") for p in ("alpha", "beta", "gamma") if f"activation_{p}" in given]
    x.add("Gemm", list(node.input), x.new(node, "product") if kind else node.output[0], node, **given)
    if kind:
        x.activation(node, kind, parameters, x.nodes[-1].output[0])
    return True


def _activation(given: dict[str, Any]) -> str:
    kind = given.pop("activation", b"")
    return kind.decode() if isinstance(kind, bytes) else str(kind)


def _matmul(x: _Expansion, node: onnx.NodeProto, given: dict[str, Any]) -> bool:
    """MatMul of transposed operands; it stays as it is where their ranks are unknown."""
    if given.get("transBatchA") or given.get("transBatchB"):
        return False
    turned = [name for name, flag in zip(node.input, ("transA", "transB"), strict=False) if given.get(flag)]
    if any(x.ranks.get(name, 0) < 2 for name in turned):
        return False
    inputs = list(node.input)
    for i, flag in enumerate(("transA", "transB")):
        if given.get(flag):
            *order, last, end = range(x.ranks[inputs[i]])
            inputs[i] = x.add("Transpose", [inputs[i]], x.new(node, "turned"), node, perm=[*order, end, last])
    alpha = float(given.get("alpha", 1.0))
    product = x.add("MatMul", inputs, node.output[0] if alpha == 1.0 else x.new(node, "product"), node)
    if alpha != 1.0:
        x.add("Mul", [product, x.number(alpha, node)], node.output[0], node)
    return True


def _gelu(x: _Expansion, node: onnx.NodeProto, given: dict[str, Any]) -> bool:
    """0.5 x (1 + erf(x / sqrt 2)), of x and, for BiasGelu, a bias."""
    source = node.input[0]
    if len(node.input) > 1 and node.input[1]:
        source = x.add("Add", list(node.input), x.new(node, "sum"), node)
    scaled = x.add("Div", [source, x.number(math.sqrt(2.0), node)], x.new(node, "scaled"), node)
    return _gated(x, node, source, x.add("Erf", [scaled], x.new(node, "erf"), node))


def _fast_gelu(x: _Expansion, node: onnx.NodeProto, given: dict[str, Any]) -> bool:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    source = node.input[0]
    if len(node.input) > 1 and node.input[1]:
        source = x.add("Add", list(node.input), x.new(node, "sum"), node)
    square = x.add("Mul", [source, source], x.new(node, "square"), node)
    part = x.add("Mul", [square, x.number(0.044715 * math.sqrt(2 / math.pi), node)], x.new(node, "part"), node)
    factor = x.add("Add", [part, x.number(math.sqrt(2 / math.pi), node)], x.new(node, "factor"), node)
    inner = x.add("Mul", [source, factor], x.new(node, "inner"), node)
    return _gated(x, node, source, x.add("Tanh", [inner], x.new(node, "tanh"), node))


def _gated(x: _Expansion, node: onnx.NodeProto, source: str, curve: str) -> bool:
    """Write source (1 + curve) / 2."""
    gate = x.add("Add", [curve, x.number(1.0, node)], x.new(node, "gate"), node)
    product = x.add("Mul", [source, gate], x.new(node, "product"), node)
    x.add("Mul", [product, x.number(0.5, node)], node.output[0], node)
    return True


def _quick_gelu(x: _Expansion, node: onnx.NodeProto, given: dict[str, Any]) -> bool:
    """Write x sigmoid(alpha x)."""
    source, alpha = node.input[0], float(given.get("alpha", 1.702))
    scaled = x.add("Mul", [source, x.number(alpha, node)], x.new(node, "scaled"), node) if alpha != 1.0 else source
    gate = x.add("Sigmoid", [scaled], x.new(node, "gate"), node)
    x.add("Mul", [source, gate], node.output[0], node)
    return True


def _skip_layer_norm(x: _Expansion, node: onnx.NodeProto, given: dict[str, Any]) -> bool:
    """Layer normalisation of a sum; inputs are input, skip, gamma, beta and a bias of the sum."""
    source, skip, gamma, beta, bias = [*node.input, "", ""][:5]
    if any(node.output[1:3]):  # mean and deviation, for training
        return False
    end = node.output[3] if len(node.output) > 3 and node.output[3] else x.new(node, "sum")
    first = x.new(node, "first") if bias else end
    x.add("Add", [source, skip], first, node)
    if bias:
        x.add("Add", [first, bias], end, node)
    inputs = [end, gamma, *([beta] if beta else [])]
    x.add("LayerNormalization", inputs, node.output[0], node, axis=-1, epsilon=given.get("epsilon", 1e-12))
    return True


Rule = Callable[[_Expansion, onnx.NodeProto, dict[str, Any]], bool]
RULES: dict[str, Rule] = {
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "FusedMatMul": _matmul,
    "TransposeMatMul": _matmul,
    "Gelu": _gelu,
    "BiasGelu": _gelu,
    "FastGelu": _fast_gelu,
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_layer_norm,
}
"""How each fused operator is written; a rule gives whether it could."""
