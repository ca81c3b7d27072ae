from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from qdeploy.core.errors import InputError
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
