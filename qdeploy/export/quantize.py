"""Explicit Q/DQ INT8 from a float graph and its ranges, in the encoding of a target."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

from qdeploy.core.errors import InputError, near_miss
from qdeploy.export.calibrate import Calibration


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a target wants its integers. Weights are always int8, symmetric, one scale per output channel."""

    target: str
    activations: QuantType
    symmetric: bool
    """Zero point 0 (int8) instead of the one that fits the range best."""
    quantized_bias: bool
    """int32 biases; TensorRT refuses them."""
    operators: tuple[str, ...]
    """Operators that compute on integers."""


_MATRIX = ("Conv", "Gemm", "MatMul")

ENCODINGS: dict[str, Encoding] = {
    "x86": Encoding(
        target="x86",
        activations=QuantType.QUInt8,
        symmetric=False,
        quantized_bias=True,
        operators=(*_MATRIX, "Add", "Mul", "Clip", "Relu", "Sigmoid", "Concat", "Reshape", "Transpose", "Split"),
    ),
    "tensorrt": Encoding(
        target="tensorrt",
        activations=QuantType.QInt8,
        symmetric=True,
        quantized_bias=False,
        operators=_MATRIX,
    ),
}


def encoding_for(target: str) -> Encoding:
    """Look an encoding up.

    Raises:
        InputError: If the target is unknown.
    """
    if target not in ENCODINGS:
        raise InputError(f"there is no target '{target}'{near_miss(target, ENCODINGS)}; known: {', '.join(ENCODINGS)}")
    return ENCODINGS[target]


def quantize(
    model: onnx.ModelProto, calibration: Calibration, encoding: Encoding, float_nodes: Iterable[str] = ()
) -> onnx.ModelProto:
    """Insert Q/DQ pairs around the operators of the encoding.

    Args:
        model: The float graph; it is not changed.
        calibration: The range of each of its tensors.
        encoding: What the target wants.
        float_nodes: Names of nodes that stay in float.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    ranges = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in calibration.ranges.items()
    }
    options: dict[str, Any] = {
        "ActivationSymmetric": encoding.symmetric,
        "WeightSymmetric": True,
        "QuantizeBias": encoding.quantized_bias,
    }
    quantizer = QDQQuantizer(
        copy,
        True,  # per channel
        False,  # reduce_range
        QuantType.QInt8,
        encoding.activations,
        TensorsData(CalibrationMethod.MinMax, ranges),
        [],
        sorted(float_nodes),
        list(encoding.operators),
        options,
    )
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it logs every tensor it leaves alone
    try:
        quantizer.quantize_model()
    finally:
        root.setLevel(level)
    quantizer.model.topological_sort()  # it inserts pairs behind their readers
    result: onnx.ModelProto = quantizer.model.model
    onnx.checker.check_model(result)
    return result
