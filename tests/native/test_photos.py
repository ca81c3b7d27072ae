"""The file of golden photos: what comes back of it, and that no damage to it is taken for goldens."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from qdeploy.core.errors import InputError
from qdeploy.native.photos import photos_bytes, read_photos

RNG = np.random.default_rng(0)
PHOTOS = [RNG.integers(0, 256, (*sides, 3), np.uint8) for sides in ((4, 4), (3, 5))]
LOGITS = RNG.normal(size=(2, 3)).astype(np.float32)
WHOLE = photos_bytes(PHOTOS, LOGITS)
COUNT, CLASSES, WIDTH, HEIGHT = 8, 16, 20, 24
"""Places of the numbers in the head."""


def test_photos_come_back(tmp_path: Path) -> None:
    file = tmp_path / "model.goldens"
    file.write_bytes(WHOLE)
    found = read_photos(file)
    assert all(np.array_equal(a, b) for a, b in zip(found.photos, PHOTOS, strict=True))
    assert np.array_equal(found.logits, LOGITS)
    assert found.size == 4


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    file = tmp_path / "model.goldens"
    for length in range(len(WHOLE)):
        file.write_bytes(WHOLE[:length])
        with pytest.raises(InputError, match="is no file of golden photos, or damaged"):
            read_photos(file)


@pytest.mark.parametrize("at", [COUNT, CLASSES, WIDTH, HEIGHT])
@pytest.mark.parametrize("value", [0, 1 << 16, 2**32 - 1])
def test_numbers_that_do_not_fit_the_file_are_refused(at: int, value: int, tmp_path: Path) -> None:
    file = tmp_path / "model.goldens"
    file.write_bytes(WHOLE[:at] + struct.pack("<I", value) + WHOLE[at + 4 :])
    with pytest.raises(InputError, match="is no file of golden photos, or damaged"):
        read_photos(file)


def test_a_file_without_photos_or_with_both_sides_huge_is_refused(tmp_path: Path) -> None:
    """Nothing would be verified by the first; the other's bytes are more than a machine's word counts."""
    file = tmp_path / "model.goldens"
    for data in (WHOLE[:COUNT] + struct.pack("<III", 0, 4, 3), WHOLE[:WIDTH] + b"\xff" * 8 + WHOLE[HEIGHT + 4 :]):
        file.write_bytes(data)
        with pytest.raises(InputError, match="is no file of golden photos, or damaged"):
            read_photos(file)
