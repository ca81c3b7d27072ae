"""The INT8 encoding of each target; one calibration serves them all."""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.core.errors import InputError, near_miss


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a target wants its integers. Weights are always int8, symmetric, one scale per output channel."""

    target: str
    runtime: str | None
    """What its files are made for, as ``qdeploy lint`` judges it; None: nothing of its own."""
    signed: bool
    """int8 activations instead of uint8."""
    symmetric: bool
    """The range is symmetric about zero: the zero point is 0 of int8, or 128 of uint8."""
    quantized_bias: bool
    """int32 biases; TensorRT refuses them."""
    seven_bit_weights: bool
    """CPUs without VNNI add pairs of products in 16 bits: full 8-bit weights overflow there."""
    integer_gelu: bool
    """GELU as x sigmoid(1.702 x) on integers, two table look-ups in ONNX Runtime; elsewhere it stays float."""
    operators: tuple[str, ...]
    """Operators that compute on integers."""


_MATRIX = ("Conv", "Gemm", "MatMul")
_ALL = (*_MATRIX, "Add", "Mul", "Clip", "Relu", "Sigmoid", "Concat", "Reshape", "Transpose", "Split")


def _u8(target: str, runtime: str, *, seven_bit_weights: bool = False, integer_gelu: bool = True) -> Encoding:
    return Encoding(
        target=target,
        runtime=runtime,
        signed=False,
        symmetric=False,
        quantized_bias=True,
        seven_bit_weights=seven_bit_weights,
        integer_gelu=integer_gelu,
        operators=_ALL,
    )


def _symmetric(target: str, runtime: str | None, *, signed: bool) -> Encoding:
    return Encoding(
        target=target,
        runtime=runtime,
        signed=signed,
        symmetric=True,
        quantized_bias=False,
        seven_bit_weights=False,
        integer_gelu=False,
        operators=_MATRIX,
    )


ENCODINGS = {
    e.target: e
    for e in (
        _u8("x86", "onnxruntime x86 with VNNI/AMX"),
        _u8("x86-avx2", "onnxruntime x86 without VNNI", seven_bit_weights=True),
        _symmetric("arm", "onnxruntime ARM", signed=True),
        _u8("cortex-m", "native C on a Cortex-M"),
        _u8("openvino", "openvino", integer_gelu=False),
        _symmetric("tensorrt", "tensorrt 10.12+ / 11", signed=True),
        _symmetric("portable", None, signed=False),
    )
}
"""Every target, by its name: what lists targets, lists these."""
RUNTIMES = {e.target: e.runtime for e in ENCODINGS.values() if e.runtime is not None}
"""What ``qdeploy lint`` judges a file for, by the target whose files are made for it."""


def encoding_for(target: str) -> Encoding:
    """Look an encoding up.

    Raises:
        InputError: If the target is unknown.
    """
    if target not in ENCODINGS:
        raise InputError(f"there is no target '{target}'{near_miss(target, ENCODINGS)}; known: {', '.join(ENCODINGS)}")
    return ENCODINGS[target]
