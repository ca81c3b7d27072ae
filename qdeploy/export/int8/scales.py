"""Scales and zero points of ranges, and which values have one: at the edges of float32 a tensor stays in float."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from qdeploy.export.int8.encodings import Encoding
from qdeploy.export.int8.ranges import Range

LARGEST = 1e18
"""Largest magnitude in integers: the product of two such is still a float32; -inf and the least float are beyond."""
LEAST_SCALE = 1e-30
"""Smallest scale of an activation."""
LEAST_PRODUCT = 1e-36
"""Smallest scale of products; what is below is subnormal, which processors may take for zero."""
MASKED = -50.0
"""A constant of zeros and one value below this is a mask: behind a Softmax that value leaves nothing."""


def has_scale(span: Range) -> bool:
    """Tell whether integers can hold a range; not so if it is not finite, huge, or of subnormal numbers."""
    extreme = max(-span[0], span[1])
    return extreme == 0 or LEAST_SCALE * 255 <= extreme <= LARGEST


def has_scales(tensor: onnx.TensorProto, bias: bool = False) -> bool:
    """Tell whether integers can hold a constant.

    Args:
        tensor: The constant.
        bias: Whether it is added to products, whose scale it takes: then it may be as small as it likes.
    """
    values = numpy_helper.to_array(tensor)
    if tensor.data_type != onnx.TensorProto.FLOAT or not values.size or not np.isfinite(values).all():
        return False
    extreme = float(np.abs(values).max())
    return extreme <= LARGEST if bias else has_scale((-extreme, extreme)) and not is_mask(values)


def is_mask(values: NDArray[Any]) -> bool:
    """Tell whether values are zeros and one large negative number, which would take all levels for itself."""
    low = values.min()
    return bool(low <= MASKED and (values == 0).any() and ((values == 0) | (values == low)).all())


def scale_and_zero(span: Range, encoding: Encoding) -> tuple[NDArray[np.float32], NDArray[np.integer[Any]]]:
    """Return the scale and the zero point of a range."""
    low, high = (float(np.float32(end)) for end in span)
    if encoding.symmetric:
        extreme = max(-low, high)
        steps, point = (254.0, 0) if encoding.signed else (255.0, 128)
        scale = 2 * extreme / steps
    else:
        scale = (high - low) / 255.0
        point = round(-low / scale) if scale >= np.finfo(np.float32).tiny else 0
    kind = np.int8 if encoding.signed else np.uint8
    if scale < np.finfo(np.float32).tiny:
        scale = 1.0
    return np.asarray(scale, np.float32), np.asarray(point, kind)


def quantized(
    values: NDArray[np.float32], scale: NDArray[np.float32], zero: NDArray[np.integer[Any]]
) -> NDArray[np.integer[Any]]:
    """Return the integers of values."""
    limits = np.iinfo(zero.dtype)
    return np.clip(np.round(values / scale) + zero.astype(np.float32), limits.min, limits.max).astype(zero.dtype)
