from __future__ import annotations

import numpy as np
import pytest

from qdeploy.training.normalisation import NORMALISATIONS, colour_statistics


def test_statistics_are_those_of_all_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2100, 4, 4, 3)).astype(np.uint8)
    pixels[..., 1] //= 2
    mean, std = colour_statistics(pixels)
    assert mean == pytest.approx((pixels / 255).mean((0, 1, 2)), abs=5.1e-5)
    assert std == pytest.approx((pixels / 255).std((0, 1, 2)), abs=5.1e-5)


def test_a_colour_that_never_changes_has_a_deviation_above_zero() -> None:
    assert colour_statistics(np.full((3, 2, 2, 3), 255, np.uint8)) == ((1.0, 1.0, 1.0), (0.001, 0.001, 0.001))


def test_the_thesis_s_constants() -> None:
    assert NORMALISATIONS["cifar-10"] == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201))
