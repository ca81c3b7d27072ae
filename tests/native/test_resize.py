"""The resize in C against Pillow, by way of the one preprocessing: every bit of every pixel."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from qdeploy.core.preprocessing import FILTERS, Preprocessing
from qdeploy.native.kernels import FLAGS, KERNELS, RESIZE_FILES
from tests.native.compiled import COMPILER, needs_compiler

pytestmark = needs_compiler
Resize = Callable[[NDArray[np.uint8], int, str], NDArray[np.uint8]]
SIZES = 1000
LARGEST = 300
PIXELS = np.random.default_rng(0).integers(0, 256, 2_000_000, np.uint8)
EDGES = [
    *[(1, 1), (1, 400), (400, 1), (2, 3), (64, 64), (64, 65), (65, 64), (63, 64), (64, 63), (129, 64), (64, 129)],
    *[(63, 400), (400, 63), (3000, 5), (5, 3000), (127, 128), (128, 127), (2, 1999), (1999, 2), (640, 480), (480, 640)],
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("resize")
    for name in RESIZE_FILES:
        shutil.copy(KERNELS / name, folder)
    flags = [f for f in FLAGS if "visibility" not in f]
    words = [str(COMPILER), *flags, "-Wall", "-Wextra", "-pedantic", "-Werror", "-fPIC", "-shared", "qdeploy_resize.c"]
    subprocess.run([*words, "-o", "resize.so"], cwd=folder, check=True)
    made = ctypes.CDLL(str(folder / "resize.so"))
    made.qdeploy_resize_bytes.restype = ctypes.c_size_t
    made.qdeploy_resize.argtypes = [ctypes.c_void_p, *[ctypes.c_int32] * 2, ctypes.c_void_p, ctypes.c_int32]
    made.qdeploy_resize.argtypes += [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    return made


@pytest.fixture(scope="module")
def resize(library: ctypes.CDLL) -> Resize:
    def run(photo: NDArray[np.uint8], size: int, interpolation: str) -> NDArray[np.uint8]:
        height, width = photo.shape[:2]
        how = FILTERS.index(interpolation) + 1
        bytes_ = int(library.qdeploy_resize_bytes(width, height, size, how))
        work, made = np.full(bytes_ + 64, 0xA5, np.uint8), np.empty((size, size, 3), np.uint8)
        places = photo.ctypes.data, width, height, made.ctypes.data, size, how, work.ctypes.data
        assert library.qdeploy_resize(*places, bytes_) == 0
        assert (work[bytes_:] == 0xA5).all(), "written behind the working memory"
        assert library.qdeploy_resize(*places, bytes_ - 1) == 1
        return made

    return run


def photo_of(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """Return noise, of which a part is as bright or dark as it can be."""
    start = seed * 977 % LARGEST
    pixels = PIXELS[start : start + width * height * 3].reshape(height, width, 3)
    return np.ascontiguousarray(np.clip(pixels.astype(np.int16) * (1 + seed % 3) - 100 * (seed % 2), 0, 255), np.uint8)


def sizes() -> list[tuple[int, int]]:
    """Return the edges, and as many widths and heights more, of which every fourth is a bad fit of its neighbour."""
    random = np.random.default_rng(1)
    found = [(int(w), int(h)) for w, h in random.integers(1, LARGEST, (SIZES, 2)) ** 2 // LARGEST + 1]
    return EDGES + [(w, w + i % 3 - 1 or 1) if i % 4 == 0 else (w, h) for i, (w, h) in enumerate(found)]


def test_a_thousand_sizes_give_pillows_pixels(resize: Resize) -> None:
    for i, (width, height) in enumerate(sizes()):
        size, interpolation = (64, 64, 32, 96, 7)[i % 5], FILTERS[i // 5 % 2]
        photo = photo_of(width, height, i)
        expected = Preprocessing(size=size, interpolation=interpolation).resize(Image.fromarray(photo))
        found = resize(photo, size, interpolation)
        assert np.array_equal(found, expected), (width, height, size, interpolation)


@pytest.mark.parametrize(
    ("width", "height", "size", "how"), [(0, 9, 9, 1), (9, -1, 9, 1), (9, 16385, 9, 1), (9, 9, 0, 1), (9, 9, 9, 3)]
)
def test_what_is_out_of_range_is_refused(library: ctypes.CDLL, width: int, height: int, size: int, how: int) -> None:
    assert library.qdeploy_resize_bytes(width, height, size, how) == 0
    photo, made, work = (np.zeros(4096, np.uint8) for _ in range(3))
    places = photo.ctypes.data, width, height, made.ctypes.data, size, how, work.ctypes.data, 4096
    assert library.qdeploy_resize(*places) == 1
    assert not made.any()
