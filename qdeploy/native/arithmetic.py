"""The contract for numbers in numpy: what every kernel computes on every CPU, to the last bit.

Integers: sums of 32 bits; a sum times a float32 multiplier, clamped, rounded half to even, plus the zero point, as
ONNX Runtime's kernels for x86 do it. Floats: IEEE single precision, sums as chains of fused multiply-adds in a fixed
order, and functions made of those alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
f32 = np.float32

LANES = 16
"""A sum along the innermost axis is made of so many interleaved chains, added in pairs at the end."""
LOG2E, LN2_HIGH, LN2_LOW = f32(1.44269504088896341), f32(0.693359375), f32(-2.12194440e-4)
EXP_TERMS = tuple(map(f32, (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)))
"""Cephes' polynomial for exp(r) - 1 - r over r^2, |r| <= ln(2) / 2."""
EXP_LOW, EXP_HIGH = f32(-87.0), f32(88.0)
ERFC_TERMS = tuple(
    map(
        f32,
        (
            *(0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807),
            *(-0.18628806, 0.09678418, 0.37409196, 1.00002368, -1.26551223),
        ),
    )
)
"""Chebyshev fit of erfc with a relative error of 1.2e-7 (Numerical Recipes, 6.2)."""
ROUNDER = f32(12582912.0)
"""1.5 * 2^23: adding and taking it away rounds half to even."""


def fma(a: Any, b: Any, c: Any) -> Floats:
    """Return a * b + c in float32, rounded once.

    The product is exact in float64; the sum is rounded to odd there, so that the second rounding sees what was lost.
    """
    product = np.asarray(a, np.float32).astype(np.float64) * np.asarray(b, np.float32)
    addend = np.asarray(c, np.float32).astype(np.float64)
    total = np.atleast_1d(product + addend)
    shifted = total - product
    error = (product - (total - shifted)) + (addend - shifted)
    bits = total.view(np.int64)
    even = (bits & 1) == 0
    away = (error > 0) == (total > 0)
    fixed = np.where((error != 0) & even, bits + np.where(away, 1, -1), bits)
    return fixed.view(np.float64).astype(np.float32).reshape(np.shape(product + addend))


def exp(x: Any) -> Floats:
    """Return e to the power of x; x is clamped to [-87, 88]."""
    x = np.minimum(np.maximum(np.asarray(x, np.float32), EXP_LOW), EXP_HIGH)
    steps = fma(x, LOG2E, ROUNDER) - ROUNDER
    rest = fma(steps, -LN2_LOW, fma(steps, -LN2_HIGH, x))
    value = np.full_like(rest, EXP_TERMS[0])
    for term in EXP_TERMS[1:]:
        value = fma(value, rest, term)
    value = fma(value, rest * rest, rest) + f32(1.0)
    return value * ((steps.astype(np.int32) + 127) << 23).astype(np.int32).view(np.float32)


def sigmoid(x: Any) -> Floats:
    """Return 1 / (1 + exp(-x))."""
    return f32(1.0) / (f32(1.0) + exp(-np.asarray(x, np.float32)))


def erf(x: Any) -> Floats:
    """Return the error function."""
    size = np.abs(np.asarray(x, np.float32))
    t = f32(1.0) / fma(size, f32(0.5), f32(1.0))
    value = np.full_like(t, ERFC_TERMS[0])
    for term in ERFC_TERMS[1:]:
        value = fma(value, t, term)
    rest = t * exp(fma(-size, size, value))
    return np.copysign(f32(1.0) - rest, np.asarray(x, np.float32))


def gelu(x: Any) -> Floats:
    """Return x times the normal distribution at x."""
    x = np.asarray(x, np.float32)
    return (x * f32(0.5)) * (f32(1.0) + erf(x * f32(0.70710678)))


FUNCTIONS: dict[str, Callable[[Any], Floats]] = {
    "sigmoid": sigmoid,
    "exp": exp,
    "erf": erf,
    "gelu": gelu,
    "silu": lambda x: x * sigmoid(x),
    "tanh": lambda x: f32(1.0) - f32(2.0) / (exp(x + x) + f32(1.0)),
    "hardsigmoid": lambda x: np.minimum(np.maximum(fma(x, f32(1 / 6), f32(0.5)), f32(0)), f32(1)),
    "hardswish": lambda x: x * np.minimum(np.maximum(fma(x, f32(1 / 6), f32(0.5)), f32(0)), f32(1)),
    "sqrt": lambda x: np.sqrt(np.asarray(x, np.float32)),
}
"""Functions of floats by the ``function`` of a unary operator; ``clamp`` is in every operator."""


def quantized(values: Floats, scale: float, zero: int) -> NDArray[np.uint8]:
    """Return the codes of values."""
    with np.errstate(over="ignore"):  # what is beyond all codes is clamped
        return rounded(values / f32(scale), zero)


def rounded(steps: Floats, zero: int, low: int = 0, high: int = 255) -> NDArray[np.uint8]:
    """Return steps as codes: clamped, rounded half to even, plus the zero point."""
    inside = np.minimum(np.maximum(steps, f32(low - zero)), f32(high - zero))
    return (np.rint(inside).astype(np.int32) + zero).astype(np.uint8)


def dequantized(codes: NDArray[np.uint8], scale: float, zero: int) -> Floats:
    """Return the values of codes."""
    return (codes.astype(np.int32) - zero).astype(np.float32) * f32(scale)


def lane_sum(values: Floats) -> Floats:
    """Return sums along the last axis, in interleaved chains that are added in pairs at the end."""
    short = -values.shape[-1] % LANES
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, short)])
    lanes = np.zeros((*values.shape[:-1], LANES), np.float32)
    for i in range(0, padded.shape[-1], LANES):
        lanes = lanes + padded[..., i : i + LANES]
    width = LANES
    while width > 1:
        width //= 2
        lanes = lanes[..., :width] + lanes[..., width : 2 * width]
    return lanes[..., 0]
