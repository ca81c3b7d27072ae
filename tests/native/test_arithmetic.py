from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from qdeploy.native.arithmetic import FUNCTIONS, dequantized, exp, fma, lane_sum, quantized


def rounded_once(value: Fraction) -> np.float32:
    """Round a fraction to float32, half to even, without going by way of float64."""
    near = np.float32(float(value))
    around = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    best = min(around, key=lambda f: (abs(Fraction(float(f)) - value), int(f.view(np.int32)) & 1))
    return np.float32(best)


def test_a_fused_product_is_rounded_once() -> None:
    random = np.random.default_rng(0)
    a, b, c = (random.normal(size=2000).astype(np.float32) for _ in range(3))
    # sums that lie on a tie of float32 but for what a float64 loses
    a[:500], b[:500] = np.float32(1 + 2**-12), np.float32(1 + 2**-12)
    c[:500] = random.choice([2.0**-40, -(2.0**-40), 2.0**30, 3.0], 500)
    c[500:900] = -(a[500:900] * b[500:900])
    found = fma(a, b, c)
    terms = zip(*(map(Fraction, map(float, v)) for v in (a, b, c)), strict=True)
    exact = [rounded_once(x * y + z) for x, y, z in terms]
    assert np.array_equal(found, np.array(exact))
    ties = np.float32(1 + 2**-23), np.float32(1 - 2**-24), np.float32(2**-60)
    assert fma(*ties) == rounded_once(math.prod(Fraction(float(t)) for t in ties[:2]) + Fraction(float(ties[2])))


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("exp", np.exp),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
        ("erf", np.vectorize(math.erf)),
        ("gelu", lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))),
        ("silu", lambda x: x / (1 + np.exp(-x))),
        ("tanh", np.tanh),
        ("hardsigmoid", lambda x: np.clip(x / 6 + 0.5, 0, 1)),
        ("hardswish", lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
        ("sqrt", lambda x: np.sqrt(x)),
    ],
)
def test_functions_are_close_to_the_true_ones(name: str, reference: np.ufunc) -> None:
    x = np.linspace(0 if name == "sqrt" else -20, 20, 4001, dtype=np.float32)
    found, true = FUNCTIONS[name](x), reference(x.astype(np.float64))
    assert found.dtype == np.float32
    assert np.allclose(found, true, rtol=2e-6, atol=1e-6)


def test_the_exponential_stays_finite() -> None:
    ends = exp(np.array([-1e30, -87, 88, 1e30], np.float32))
    assert np.isfinite(ends).all()
    assert (ends > 0).all()


@pytest.mark.parametrize("n", [1, 15, 16, 17, 64, 100])
def test_a_sum_by_lanes_is_a_sum(n: int) -> None:
    x = np.random.default_rng(n).normal(size=(3, n)).astype(np.float32)
    assert np.allclose(lane_sum(x), x.astype(np.float64).sum(-1), atol=1e-5)


def test_codes_round_half_to_even_and_saturate() -> None:
    values = np.array([-1e38, -3.5, -2.5, 0, 0.5, 1.5, 1e38], np.float32)
    assert quantized(values, 1.0, 3).tolist() == [0, 0, 1, 3, 3, 5, 255]
    assert np.array_equal(dequantized(np.array([0, 3, 255], np.uint8), 0.5, 3), np.array([-1.5, 0, 126], np.float32))
