"""From an ONNX graph to a program: every node by its rule, on codes where it can be, else on floats."""

from __future__ import annotations

import numpy as np

from qdeploy.native.choice_rules import CHOICE_RULES
from qdeploy.native.float_rules import FLOAT_RULES
from qdeploy.native.integer_rules import INTEGER_RULES, requantized
from qdeploy.native.ir import Program, Tensor
from qdeploy.native.lowering import Constant, Lowering, UnsupportedError, View
from qdeploy.native.move_rules import MOVE_RULES
from qdeploy.native.onnx_graph import Graph, Node
from qdeploy.native.pool_rules import POOL_RULES

RULES = MOVE_RULES | CHOICE_RULES | POOL_RULES


def lower(graph: Graph, size: int) -> Program:
    """Translate a graph.

    Args:
        graph: The graph of an artifact: ``image`` in, ``logits`` and ``probabilities`` out.
        size: Height and width of its images.

    Raises:
        UnsupportedError: If an operator, or a use of it, has no kernel.
    """
    low = Lowering(graph, size)
    done: set[str] = set()
    for node in graph.nodes:
        if not set(node.outputs) & done:
            done |= _apply(low, node)
    logits, probabilities = (low.float_tensor(name) for name in graph.outputs)
    for name, tensor in zip(graph.outputs, (logits, probabilities), strict=True):
        if tensor.data is not None or len(tensor.shape) != 2:
            raise UnsupportedError("graph", f"the output '{name}' is of shape {tensor.shape}")
    return Program(low.ops, low.image, logits, probabilities)


def _apply(low: Lowering, node: Node) -> set[str]:
    """Translate one node; return the outputs of later nodes that it stands for."""
    if node.domain not in ("", "ai.onnx"):
        raise UnsupportedError(f"{node.domain}.{node.kind}", "only ONNX's own operators are compiled")
    if node.kind in ("QuantizeLinear", "DequantizeLinear"):
        (_quantize if node.kind == "QuantizeLinear" else _dequantize)(low, node)
        return set()
    if node.kind in RULES:
        RULES[node.kind](low, node)
        return set()
    made = _on_codes(low, node)
    if made is None:
        rule = FLOAT_RULES.get(node.kind)
        if rule is None:
            raise UnsupportedError(node.kind, "there is no kernel for this operator")
        low.values[node.outputs[0]] = rule(low, node)
        return set()
    return made


def _on_codes(low: Lowering, node: Node) -> set[str] | None:
    """Translate a node whose inputs and output are codes; None if they are not, or no rule takes them so."""
    rule = INTEGER_RULES.get(node.kind)
    if rule is None or not all(_is_codes(low, n) for n in node.inputs[:1]):
        return None
    target = low.target(node)
    if target is None:
        return None
    name, output, limits = target
    made = rule(low, node, output, limits)
    if made is None:
        return None
    low.values[name] = made
    middle = low.readers[node.outputs[0]][0].outputs
    return {name, *middle}


def _is_codes(low: Lowering, name: str) -> bool:
    value = low.value(name)
    return isinstance(value, View) or (isinstance(value, Constant) and value.codes is not None)


def _quantize(low: Lowering, node: Node) -> None:
    scale, zero = low.quantization(node)
    value, name = low.value(node.inputs[0]), node.outputs[0]
    if isinstance(value, View):
        same = (value.scale, value.zero) == (scale, zero)
        low.values[name] = low.codes_of(value) if same else requantized(low, value, name, scale, zero)
    else:
        source = low.float_tensor(node.inputs[0])
        low.values[name] = low.emit("quantize", [source], Tensor(name, source.shape, scale, zero))


def _dequantize(low: Lowering, node: Node) -> None:
    value, name = low.value(node.inputs[0]), node.outputs[0]
    if not isinstance(value, Constant):
        if not isinstance(value, Tensor) or not value.integer:
            raise UnsupportedError(node.kind, f"'{node.inputs[0]}' is no tensor of codes")
        low.values[name] = View(value, *low.quantization(node))
        return
    scale = low.constant(node.inputs[1]).values
    zero = low.constant(node.inputs[2]).values if len(node.inputs) > 2 else np.zeros((), value.values.dtype)
    axis = int(node.attributes.get("axis", 1))
    sides = [-1 if i == axis % max(value.values.ndim, 1) else 1 for i in range(value.values.ndim)]
    shape = sides if scale.size > 1 else ()
    steps = value.values.astype(np.int64) - zero.astype(np.int64).reshape(shape if zero.size > 1 else ())
    floats = steps.astype(np.float32) * scale.reshape(shape)
    even = bool((zero == zero.reshape(-1)[0]).all())
    low.values[name] = Constant(floats, value.values if even else None, scale, int(zero.reshape(-1)[0]))
