"""The searches of the lint rules: each returns the names of the nodes in a graph to which its rule applies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from qdeploy.export.lint.graph import DEQUANTIZE, QUANTIZE, STANDARD, Graph, label

SEVEN_BITS = 64
"""Largest magnitude of a weight of 7 bits; two products with it and uint8 still fit 16 bits."""

Q_OPERATORS = frozenset({"QLinearConv", "QLinearMatMul"})
CONTRIB_Q_OPERATORS = frozenset(
    {"QGemm"}
    | {f"QLinear{name}" for name in ("Add", "Mul", "Sigmoid", "LeakyRelu", "Softmax", "Concat", "Where")}
    | {f"QLinear{name}" for name in ("AveragePool", "GlobalAveragePool", "ReduceMean")}
)
DYNAMIC = frozenset(
    {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
)
UNKNOWN_TO_TENSORRT = frozenset(
    """AffineGrid Bernoulli BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im Compress
    ConcatFromSequence CumProd DFT Det ImageDecoder MaxRoiPool MaxUnpool MelWeightMatrix Multinomial
    NegativeLogLikelihoodLoss Optional OptionalGetElement OptionalHasElement RegexFullMatch SequenceAt
    SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap SoftmaxCrossEntropyLoss
    SplitToSequence StringConcat StringNormalizer StringSplit SwiGLU TfIdfVectorizer Unique""".split()  # noqa: SIM905
)
"""Standard operators that the parser of TensorRT-RTX 1.7.1 does not know. Without DeformConv, in TensorRT a plugin."""


def _labels(nodes: Iterable[NodeProto]) -> Iterator[str]:
    return (label(n) for n in nodes)


def activation_zero_point(g: Graph) -> Iterator[str]:
    """Return quantizers of activations whose zero point is not 0."""
    return _labels(n for n in g.activation_quantizers() if g.zero_point(n).any())


def uint8_zero(g: Graph) -> Iterator[str]:
    """Return Q nodes to uint8 with zero point 0, which is also the default of ONNX."""
    quantizers = (n for n in g.of(QUANTIZE) if not g.zero_point(n).any())
    return _labels(n for n in quantizers if g.integer_type(n) == TensorProto.UINT8)


def uint8_constant(g: Graph) -> Iterator[str]:
    """Return DQ nodes of uint8 constants and uint8 inputs."""
    sources = (n for n in g.of(DEQUANTIZE) if n.input[0] in g.constants or n.input[0] in g.inputs)
    return _labels(n for n in sources if g.integer_type(n) == TensorProto.UINT8)


def int32_bias(g: Graph) -> Iterator[str]:
    """Return DQ nodes of int32 constants."""
    return _labels(n for n in g.constant_dequantizers() if g.integer_type(n) == TensorProto.INT32)


def weight_zero_point(g: Graph) -> Iterator[str]:
    """Return DQ nodes of constants whose zero point is not 0."""
    return _labels(n for n in g.constant_dequantizers() if g.zero_point(n).any())


def integer_constant(g: Graph) -> Iterator[str]:
    """Return readers of int8 constants other than DQ, and DQ nodes of a single number."""
    for name, tensor in g.constants.items():
        if tensor.data_type == TensorProto.INT8:
            for node, index in g.readers[name]:
                pair = node.op_type in (QUANTIZE, DEQUANTIZE)
                fine = pair and (index == 2 or (index == 0 and g.rank(name) > 0))
                if not fine and node.op_type not in (*Q_OPERATORS, *CONTRIB_Q_OPERATORS, *DYNAMIC):
                    yield label(node)


def quantized_float_constant(g: Graph) -> Iterator[str]:
    """Return Add and Mul nodes with a float vector that is quantized in the graph."""
    for node in g.of("Add", "Mul"):
        for name in node.input:
            dq = g.made_by(name, DEQUANTIZE)
            q = dq and g.made_by(dq.input[0], QUANTIZE)
            if q and q.input[0] in g.constants and list(g.constants[q.input[0]].dims)[-1:] > [1]:
                yield label(node)


def missing_output_quantizer(g: Graph) -> Iterator[str]:
    """Return integer layers that ONNX Runtime computes in float, as their output is not quantized."""
    for node in g.integer_layers():
        float_bias = len(node.input) > 2 and g.made_by(node.input[2], DEQUANTIZE) is None
        needed = node.op_type == "Conv" or (node.op_type == "Gemm" and float_bias)  # others may give float
        if needed and not _requantized(g, node.output[0]):
            yield label(node)


def _requantized(g: Graph, name: str) -> bool:
    """Tell whether all readers quantize a tensor: directly, reshaped, or behind a Relu or Clip that the range has."""
    readers = g.read_by(name)
    if name in g.outputs or not readers:
        return False
    for node in readers:
        if node.op_type in ("Reshape", "Transpose"):
            if not _requantized(g, node.output[0]):
                return False
            continue
        after = g.read_by(node.output[0]) if node.op_type in ("Relu", "Clip") else [node]
        if not after or any(n.op_type != QUANTIZE for n in after):
            return False
        if node not in after and not all(_range_covers(g, node, q) for q in after):
            return False
    return True


def _range_covers(g: Graph, activation: NodeProto, q: NodeProto) -> bool:
    """Tell whether quantizing alone clips as a Relu or Clip before it does."""
    scale = g.array(q.input[1])
    low, high = (0, 255) if g.integer_type(q) == TensorProto.UINT8 else (-128, 127)
    if scale is None or scale.size != 1:
        return False
    zero = int(g.zero_point(q)[0])
    limits = [g.array(name) for name in activation.input[1:3]] if activation.op_type == "Clip" else [np.zeros(1)]
    bottom = limits[0] if limits else None
    top = limits[1] if len(limits) > 1 else None
    fits_below = bottom is None or np.rint(bottom.item() / scale.item()) + zero <= low
    return bool(fits_below and (top is None or np.rint(top.item() / scale.item()) + zero >= high))


def int8_activation(g: Graph) -> Iterator[str]:
    """Return quantizers of activations to int8."""
    return _labels(n for n in g.activation_quantizers() if g.integer_type(n) == TensorProto.INT8)


def eight_bit_weights(g: Graph) -> Iterator[str]:
    """Return integer layers with int8 weights beyond 7 bits."""
    for layer in g.integer_layers():
        for dq in (g.made_by(name, DEQUANTIZE) for name in layer.input[:2] if g.is_static(name)):
            values = g.integers(dq) if dq is not None and g.integer_type(dq) == TensorProto.INT8 else None
            if values is not None and values.size and np.abs(values).max() > SEVEN_BITS:
                yield label(layer)
    for node in g.of(*Q_OPERATORS, *DYNAMIC, "QGemm"):
        stored = [g.array(n) for n in node.input if n in g.constants and g.constants[n].data_type == TensorProto.INT8]
        if any(a is not None and a.size and np.abs(a.astype(np.int64)).max() > SEVEN_BITS for a in stored):
            yield label(node)


def per_channel_activation(g: Graph) -> Iterator[str]:
    """Return quantizers of activations to uint8 with several scales."""
    wide = (n for n in g.activation_quantizers() if g.scale_size(n) > 1)
    return _labels(n for n in wide if g.integer_type(n) != TensorProto.INT8)


def per_channel_int8_activation(g: Graph) -> Iterator[str]:
    """Return quantizers of activations to int8 with several scales."""
    wide = (n for n in g.activation_quantizers() if g.scale_size(n) > 1)
    return _labels(n for n in wide if g.integer_type(n) == TensorProto.INT8)


def old_opset(g: Graph) -> Iterator[str]:
    """Return Q and DQ nodes of a graph below opset 13."""
    return _labels(g.of(QUANTIZE, DEQUANTIZE)) if g.opset < 13 else iter(())


def per_channel_below_13(g: Graph) -> Iterator[str]:
    """Return Q and DQ nodes with several scales of a graph below opset 13."""
    pairs = g.of(QUANTIZE, DEQUANTIZE) if g.opset < 13 else iter(())
    return _labels(n for n in pairs if g.scale_size(n) > 1)


def integer_operators(g: Graph) -> Iterator[str]:
    """Return operators of the QOperator format."""
    return _labels(g.of(*Q_OPERATORS, *CONTRIB_Q_OPERATORS))


def contrib_integer_operators(g: Graph) -> Iterator[str]:
    """Return operators of the QOperator format that are ONNX Runtime's own."""
    return _labels(g.of(*CONTRIB_Q_OPERATORS))


def dynamic(g: Graph) -> Iterator[str]:
    """Return operators of dynamic quantization."""
    return _labels(g.of(*DYNAMIC))


def uint8_arithmetic(g: Graph) -> Iterator[str]:
    """Return readers of a uint8 input other than Cast, and casts to uint8."""
    for node in g.nodes:
        raw = any(name in g.inputs and g.types.get(name) == TensorProto.UINT8 for name in node.input)
        if raw and node.op_type not in ("Cast", "Shape", "Equal", QUANTIZE, DEQUANTIZE):
            yield label(node)
        if node.op_type == "Cast" and _target(node) == TensorProto.UINT8:
            yield label(node)


def _target(node: NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "to"), 0)


def split_gelu(g: Graph) -> Iterator[str]:
    """Return Erf nodes with a Q or DQ among the pieces of their GELU."""
    for erf in g.of("Erf"):
        before = g.made_by(erf.input[0], "Div", "Mul", DEQUANTIZE)
        sources = [erf.input[0], *(before.input if before is not None else ())]
        after = [n for add in g.read_by(erf.output[0]) for n in (add, *g.read_by(next(iter(add.output), "")))]
        broken = any(g.made_by(name, DEQUANTIZE) is not None and not g.is_static(name) for name in sources)
        if broken or any(n.op_type == QUANTIZE for n in after):
            yield label(erf)


def fp16(g: Graph) -> Iterator[str]:
    """Return nodes that work on float16."""
    return _typed(g, TensorProto.FLOAT16)


def float64(g: Graph) -> Iterator[str]:
    """Return nodes that work on float64."""
    return _typed(g, TensorProto.DOUBLE)


def _typed(g: Graph, kind: int) -> Iterator[str]:
    """Return the nodes that read an input or constant of a type, or cast to it."""
    for node in g.nodes:
        types = [g.constants[n].data_type if n in g.constants else g.types.get(n) for n in node.input]
        if kind in types or (node.op_type == "Cast" and _target(node) == kind):
            yield label(node)


SIXTEEN = (TensorProto.INT16, TensorProto.UINT16)


def sixteen_bit(g: Graph) -> Iterator[str]:
    """Return Q and DQ nodes of 16-bit integers."""
    return _labels(n for n in g.of(QUANTIZE, DEQUANTIZE) if g.integer_type(n) in SIXTEEN)


def unknown_operator(g: Graph) -> Iterator[str]:
    """Return operators that TensorRT's parser does not know and that no other rule names."""
    standard = {s.name for s in onnx.defs.get_all_schemas() if s.domain in STANDARD}
    known = (standard - UNKNOWN_TO_TENSORRT) | Q_OPERATORS | CONTRIB_Q_OPERATORS | DYNAMIC  # those have rules
    return _labels(n for n in g.nodes if n.op_type not in known)
