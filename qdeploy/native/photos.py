"""Golden photos: images of any size with the logits that a model's C must give for them, in the file of a kit."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import InputError

MAGIC = b"QDPHOT1\0"
_HEAD = struct.Struct("<8sIII")
_SIDES = struct.Struct("<II")


@dataclass(frozen=True)
class GoldenPhotos:
    """What a kit's ``model.goldens`` holds."""

    photos: tuple[NDArray[np.uint8], ...]
    """Each uint8 ``[H, W, 3]``, RGB."""
    logits: NDArray[np.float32]
    """``[N, K]``."""
    size: int
    """Height and width of the model's input in pixels."""


def ppm(image: NDArray[np.uint8]) -> bytes:
    """Return an RGB image as a binary PPM."""
    height, width = image.shape[:2]
    return f"P6\n{width} {height}\n255\n".encode() + image.tobytes()


def photos_bytes(photos: Sequence[NDArray[np.uint8]], logits: NDArray[np.float32]) -> bytes:
    """Return photos as the C program reads them; the first has the model's size.

    Little endian: magic of 8 bytes; count, the model's size and its classes as uint32; width and height of each photo
    as uint32; the photos ``[H, W, 3]``; the logits ``[N, K]`` as float32.
    """
    head = _HEAD.pack(MAGIC, len(photos), photos[0].shape[0], logits.shape[1])
    sizes = b"".join(_SIDES.pack(photo.shape[1], photo.shape[0]) for photo in photos)
    return head + sizes + b"".join(photo.tobytes() for photo in photos) + logits.astype("<f4").tobytes()


def read_photos(file: Path) -> GoldenPhotos:
    """Read golden photos.

    Raises:
        InputError: If the file cannot be read, or is no such file.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    try:
        return _parsed(data)
    except (struct.error, ValueError, OverflowError) as error:
        raise InputError(f"{file} is no file of golden photos, or damaged", fix="make the kit again") from error


def _parsed(data: bytes) -> GoldenPhotos:
    magic, count, size, classes = _HEAD.unpack_from(data)
    if magic != MAGIC or not count or not classes:
        raise ValueError("no photos with answers")
    at = _HEAD.size + count * _SIDES.size
    photos = []
    for i in range(count):
        width, height = _SIDES.unpack_from(data, _HEAD.size + i * _SIDES.size)
        pixels = np.frombuffer(data, np.uint8, height * width * 3, at)
        photos.append(pixels.reshape(height, width, 3))
        at += pixels.size
    logits = np.frombuffer(data, "<f4", -1, at).reshape(count, classes)
    return GoldenPhotos(tuple(photos), logits.astype(np.float32), size)
