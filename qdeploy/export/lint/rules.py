"""The lint rules: what each runtime refuses, computes wrongly or runs slowly, why, and what to do about it.

Most were seen in ONNX Runtime 1.31, OpenVINO 2026.4 and TensorRT-RTX 1.7, whose parser is TensorRT's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from qdeploy.export.int8.encodings import RUNTIMES
from qdeploy.export.lint import find
from qdeploy.export.lint.graph import Graph

X86, AVX2, ARM, CORTEX_M, OPENVINO, TENSORRT = ALL = tuple(RUNTIMES)
ORT_X86 = (X86, AVX2)
ORT = (X86, AVX2, ARM)

FOR_TENSORRT = "export with `int8` and `target=tensorrt`"
FOR_OPENVINO = "export with `int8` and `target=openvino`"
FOR_X86 = "export with `int8` and `target=x86`"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One thing to look for."""

    id: str
    severity: str
    """refused, wrong, slow, or note, which changes nothing."""
    runtimes: tuple[str, ...]
    find: Callable[[Graph], Iterable[str]]
    """Returns the names of the nodes to which the rule applies."""
    why: str
    fix: str


RULES = (
    Rule(
        id="activation-zero-point",
        severity="refused",
        runtimes=(TENSORRT,),
        find=find.activation_zero_point,
        why="TensorRT quantizes symmetrically only: its parser stops at a zero point that is not 0.",
        fix=FOR_TENSORRT,
    ),
    Rule(
        id="uint8-zero",
        severity="wrong",
        runtimes=(TENSORRT,),
        find=find.uint8_zero,
        why="TensorRT's parser silently reads uint8 with zero point 0 as int8: the upper half of the range is cut off.",
        fix=FOR_TENSORRT,
    ),
    Rule(
        id="uint8-constant",
        severity="refused",
        runtimes=(TENSORRT,),
        find=find.uint8_constant,
        why="TensorRT does not take uint8 weights or a uint8 input into DequantizeLinear.",
        fix=FOR_TENSORRT,
    ),
    Rule(
        id="int32-bias",
        severity="refused",
        runtimes=(TENSORRT,),
        find=find.int32_bias,
        why="TensorRT does not dequantize int32: it wants the bias in float.",
        fix=FOR_TENSORRT + ", or pass QuantizeBias=False to ONNX Runtime's quantizer",
    ),
    Rule(
        id="weight-zero-point",
        severity="refused",
        runtimes=(TENSORRT,),
        find=find.weight_zero_point,
        why="TensorRT stops at weights with a zero point that is not 0.",
        fix="quantize weights symmetrically: every target of `qdeploy export` does",
    ),
    Rule(
        id="integer-constant",
        severity="refused",
        runtimes=(TENSORRT,),
        find=find.integer_constant,
        why="TensorRT wants each int8 constant to have a dimension at least and to go straight into DequantizeLinear.",
        fix="leave constants other than weights in float: " + FOR_TENSORRT,
    ),
    Rule(
        id="quantized-float-constant",
        severity="refused",
        runtimes=(OPENVINO,),
        find=find.quantized_float_constant,
        why="OpenVINO 2026.4 stops at Add or Mul with a float constant that goes through QuantizeLinear.",
        fix="leave constants other than weights in float: " + FOR_OPENVINO,
    ),
    Rule(
        id="missing-output-quantizer",
        severity="slow",
        runtimes=ORT,
        find=find.missing_output_quantizer,
        why="ONNX Runtime keeps a Conv, or a Gemm with float bias, in float if its output is not quantized too: "
        "a whole graph like that was 1.9 times slower than fp32.",
        fix=FOR_X86 + ", which quantizes outputs too",
    ),
    Rule(
        id="int8-activation",
        severity="slow",
        runtimes=ORT_X86,
        find=find.int8_activation,
        why="ONNX Runtime on x86 leaves part of the layers with int8 activations in float, between conversions: "
        "small models ran up to 2.4 times slower than fp32.",
        fix=FOR_X86 + " (uint8, fastest) or `target=portable` (uint8, symmetric)",
    ),
    Rule(
        id="int8-activation-openvino",
        severity="note",
        runtimes=(OPENVINO,),
        find=find.int8_activation,
        why="Some int8 models of convolutions with attention gave wrong numbers (4 dB) in OpenVINO, others right ones.",
        fix="compare the outputs with fp32 before use, or " + FOR_OPENVINO,
    ),
    Rule(
        id="eight-bit-weights",
        severity="wrong",
        runtimes=(AVX2,),
        find=find.eight_bit_weights,
        why="Without VNNI, x86 adds two products of uint8 and int8 in 16 bits: weights beyond 7 bits can saturate.",
        fix="export with `int8` and `target=x86-avx2` (7-bit weights)",
    ),
    Rule(
        id="per-channel-activation",
        severity="refused",
        runtimes=ORT,
        find=find.per_channel_activation,
        why="ONNX Runtime fuses the pair, then fails at load or at the first run: 'zero point must be a scalar'.",
        fix="quantize activations per tensor, as every target of `qdeploy export` does",
    ),
    Rule(
        id="per-channel-int8-activation",
        severity="slow",
        runtimes=ORT_X86,
        find=find.per_channel_int8_activation,
        why="ONNX Runtime on x86 leaves layers with one int8 scale per channel of the activation in float.",
        fix="quantize activations per tensor, as every target of `qdeploy export` does",
    ),
    Rule(
        id="old-opset",
        severity="note",
        runtimes=ALL,
        find=find.old_opset,
        why="Below opset 13, Q and DQ have one scale per tensor; one per output channel of the weights is more exact.",
        fix="export with opset 13 or newer; qdeploy writes opset 20",
    ),
    Rule(
        id="per-channel-below-opset-13",
        severity="refused",
        runtimes=(*ORT, OPENVINO),
        find=find.per_channel_below_13,
        why="One scale per channel is not valid below opset 13.",
        fix="export with opset 13 or newer; qdeploy writes opset 20",
    ),
    Rule(
        id="integer-operators",
        severity="refused",
        runtimes=(TENSORRT,),
        find=find.integer_operators,
        why="The QOperator format (QLinearConv and the like) is ONNX Runtime's; TensorRT wants Q/DQ pairs.",
        fix=FOR_TENSORRT + ", or quantize with QuantFormat.QDQ",
    ),
    Rule(
        id="contrib-integer-operators",
        severity="wrong",
        runtimes=(OPENVINO,),
        find=find.contrib_integer_operators,
        why="OpenVINO refuses some of ONNX Runtime's own integer operators (QGemm) and gets others wrong (QLinearAdd).",
        fix=FOR_OPENVINO + ", or quantize with QuantFormat.QDQ",
    ),
    Rule(
        id="dynamic-quantization",
        severity="refused",
        runtimes=(TENSORRT,),
        find=find.dynamic,
        why="TensorRT wants ranges fixed by calibration; it does not know the operators of dynamic quantization.",
        fix=FOR_TENSORRT,
    ),
    Rule(
        id="uint8-arithmetic",
        severity="refused",
        runtimes=(TENSORRT,),
        find=find.uint8_arithmetic,
        why="TensorRT takes uint8 as an input of the network only, and only into Cast.",
        fix="cast to float first, then transpose, slice or scale",
    ),
    Rule(
        id="split-gelu",
        severity="slow",
        runtimes=ORT,
        find=find.split_gelu,
        why="Q/DQ between the pieces of a GELU written with Erf keep ONNX Runtime from fusing them into one operator.",
        fix="export with opset 20, which has Gelu, or leave its Add, Mul and Div out of quantization",
    ),
    Rule(
        id="fp16",
        severity="slow",
        runtimes=ORT_X86,
        find=find.fp16,
        why="ONNX Runtime has few float16 kernels on x86 and puts a Cast before and after the other operators.",
        fix="use the float32 file on a CPU",
    ),
    Rule(
        id="float64",
        severity="note",
        runtimes=(TENSORRT,),
        find=find.float64,
        why="TensorRT computes float64 as float32 and cuts off larger values.",
        fix="convert the model to float32 before exporting it",
    ),
    Rule(
        id="sixteen-bit",
        severity="refused",
        runtimes=(TENSORRT,),
        find=find.sixteen_bit,
        why="TensorRT has no 16-bit integers.",
        fix=FOR_TENSORRT,
    ),
    Rule(
        id="sixteen-bit-openvino",
        severity="wrong",
        runtimes=(OPENVINO,),
        find=find.sixteen_bit,
        why="OpenVINO 2026.4 refused 16-bit Q/DQ in one graph and computed uint16 wrongly in another.",
        fix=FOR_OPENVINO,
    ),
    Rule(
        id="unknown-operator",
        severity="refused",
        runtimes=(TENSORRT,),
        find=find.unknown_operator,
        why="TensorRT's parser does not know the operator; one of another domain needs a plugin.",
        fix="replace it by standard operators, or load a plugin for it",
    ),
)
