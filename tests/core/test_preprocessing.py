from __future__ import annotations

import io

import numpy as np
import pytest
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
