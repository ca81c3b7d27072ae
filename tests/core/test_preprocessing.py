from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from qdeploy.core.errors import ImageError, InputError
from qdeploy.core.machine import peak_memory_bytes
from qdeploy.core.preprocessing import Preprocessing


def test_the_shorter_side_is_resized_and_the_centre_kept() -> None:
    image = np.zeros((64, 192, 3), np.uint8)
    image[:, 64:128] = 255  # exactly the centre square
    assert Preprocessing(size=64)(image).min() == 255
    assert Preprocessing(size=16)(image).shape == (16, 16, 3)


def test_path_bytes_image_and_array_give_the_same_pixels() -> None:
    rng = np.random.default_rng(1)
    array = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    rules = Preprocessing()
    expected = rules(array)
    assert np.array_equal(rules(stream.getvalue()), expected)
    assert np.array_equal(rules(Image.fromarray(array)), expected)


def test_alpha_and_sixteen_bits_follow_the_same_rules_from_every_source() -> None:
    rules = Preprocessing(background=(0, 255, 0))
    red = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    deep = Image.fromarray(np.full((8, 8), 1000, np.uint16))
    for image, colour in ((red, [0, 255, 0]), (deep, [3, 3, 3])):
        stream = io.BytesIO()
        image.save(stream, "PNG")
        assert rules(image)[0, 0].tolist() == rules(stream.getvalue())[0, 0].tolist() == colour
    assert rules(np.asarray(red))[0, 0].tolist() == [0, 255, 0]


@pytest.mark.parametrize("shape", [(0, 5, 3), (4, 4, 7), (4,), (2, 4, 4, 3)])
def test_arrays_that_are_no_image_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="an array must be uint8"):
        Preprocessing()(np.zeros(shape, np.uint8))


def test_an_extreme_shape_costs_no_memory() -> None:
    before = peak_memory_bytes()
    assert Preprocessing()(np.zeros((16_000, 1, 3), np.uint8)).shape == (64, 64, 3)
    assert peak_memory_bytes() - before < 20e6


def test_an_array_of_the_models_size_is_taken_as_it_is() -> None:
    rules = Preprocessing()
    pixels = np.random.default_rng(0).integers(0, 256, (rules.size, rules.size, 3), dtype=np.uint8)
    assert rules(pixels) is pixels
    assert np.array_equal(rules(Image.fromarray(pixels)), pixels)


@pytest.mark.parametrize("order", ["as it is", "mirrored", "columns first", "read only", "masked", "larger"])
def test_bytes_are_those_of_the_array(order: str) -> None:
    array = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    source = {
        "as it is": array,
        "mirrored": array[:, ::-1],
        "columns first": np.asfortranarray(array),
        "read only": np.frombuffer(array.tobytes(), np.uint8).reshape(64, 64, 3),
        "masked": np.ma.masked_greater(array, 200),
        "larger": np.repeat(array, 2, axis=0),
    }[order]
    assert Preprocessing().to_bytes(source) == np.asarray(Preprocessing()(source)).tobytes()


def test_grey_array_becomes_three_equal_channels() -> None:
    pixels = Preprocessing()(np.full((28, 28), 77, np.uint8))
    assert np.array_equal(pixels, np.full((64, 64, 3), 77))


def test_the_rules_survive_json_and_a_changed_rule_is_refused() -> None:
    rules = Preprocessing(size=32, background=(1, 2, 3))
    fields = rules.to_dict()
    assert Preprocessing.from_dict(fields) == rules
    with pytest.raises(InputError, match="differ"):
        Preprocessing.from_dict({**fields, "size": 33})
    with pytest.raises(InputError, match="incomplete"):
        Preprocessing.from_dict({"size": 32})


def weights_of(length: int, begin: float, side: float, size: int, interpolation: str) -> NDArray[np.int64]:
    """How much of each input pixel is in each output pixel, in fixed point: Pillow's formulas."""
    bilinear = interpolation == "bilinear"
    scale = side / size
    stretch = max(1.0, scale)
    reach = (1 if bilinear else 2) * stretch
    found = np.zeros((size, length), np.int64)
    for i in range(size):
        centre = begin + (i + 0.5) * scale
        first, last = max(0, int(centre - reach + 0.5)), min(length, int(centre + reach + 0.5))
        x = np.abs((np.arange(first, last) - centre + 0.5) / stretch)
        near, far = (1.5 * x - 2.5) * x * x + 1, -0.5 * (((x - 5) * x + 8) * x - 4)
        row = np.maximum(0, 1 - x) if bilinear else np.where(x < 1, near, np.where(x < 2, far, 0))
        scaled = row / (row.sum() or 1) * 2**22
        found[i, first:last] = np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5))
    return found


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(75, 100), (100, 75), (2000, 37), (66, 63), (129, 128), (3, 2), (20, 20), (64, 90)])
def test_rows_are_resized_before_columns_with_every_pillow(shape: tuple[int, int], interpolation: str) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (*shape, 3), dtype=np.uint8)
    height, width = shape
    side = min(shape)
    across = weights_of(width, (width - side) / 2, side, 64, interpolation)
    down = weights_of(height, (height - side) / 2, side, 64, interpolation)
    rows = np.clip((np.einsum("ow,hwc->hoc", across, pixels.astype(np.int64)) + 2**21) >> 22, 0, 255)
    expected = np.clip((np.einsum("oh,hwc->owc", down, rows) + 2**21) >> 22, 0, 255)
    assert np.array_equal(Preprocessing(interpolation=interpolation)(pixels), expected)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_mean_and_std_that_are_no_numbers_are_refused(wrong: float) -> None:
    for field in ("mean", "std"):
        values: dict[str, Any] = {field: (0.5, wrong, 0.5)}
        with pytest.raises(InputError, match=f"preprocessing {field} must be"):
            Preprocessing(**values)
