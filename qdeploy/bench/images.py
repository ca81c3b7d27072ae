"""The images of a measurement: real ones, all different, some as encoded files that must be decoded first."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.embedded import embedded_source

NUM_IMAGES = 64
"""Different images that the runs rotate over: one image alone would stay in the caches."""
FILE_SIDE = 128
"""Width and height of the encoded images in pixels."""
QUALITY = 90


def sample_images(preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return 64 different real images at a model's size, ``[64, S, S, 3]``."""
    return np.stack([preprocessing(pixels) for pixels in _pixels()])


def encoded_images() -> list[bytes]:
    """Return the same 64 images as JPEG files of 128x128 pixels."""
    files = []
    for pixels in _pixels():
        stream = io.BytesIO()
        image = Image.fromarray(pixels).convert("RGB").resize((FILE_SIDE, FILE_SIDE), Image.Resampling.BICUBIC)
        image.save(stream, "JPEG", quality=QUALITY)
        files.append(stream.getvalue())
    return files


def _pixels() -> list[NDArray[np.uint8]]:
    records = embedded_source().records["test"][:: 1000 // NUM_IMAGES][:NUM_IMAGES]
    return [np.asarray(r.image()) for r in records]
