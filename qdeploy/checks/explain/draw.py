"""Draws maps over images with Pillow: red raises, blue lowers, the rest is left as it is."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

RED, BLUE = (214, 39, 40), (31, 90, 180)
STRENGTH = 0.75
"""Opacity of the strongest colour."""
SIDE = 192
"""Least height and width of a picture, in pixels."""


def overlay(pixels: NDArray[np.uint8], values: NDArray[Any], full: float | None = None) -> Image.Image:
    """Draw a signed map over an image.

    Args:
        pixels: The image, uint8 ``[S, S, 3]``.
        values: The map, ``[H, W]``, enlarged bilinearly.
        full: The size of a value in full colour; by default the largest of the map.
    """
    image = enlarged(pixels)
    full = float(np.abs(values).max()) if full is None else full
    parts = np.clip(np.asarray(values, np.float32) / max(full, 1e-30), -1, 1)
    wide = np.asarray(Image.fromarray(parts).resize(image.size, Image.Resampling.BILINEAR))
    share = STRENGTH * np.abs(wide)[:, :, None]
    colour = np.where(wide[:, :, None] > 0, np.array(RED), np.array(BLUE))
    return Image.fromarray(np.rint(np.asarray(grey(image)) * (1 - share) + colour * share).astype(np.uint8))


def marked(pixels: NDArray[np.uint8], side: int, cells: Iterable[tuple[int, int]]) -> Image.Image:
    """Draw a frame around cells of a square grid over an image, and darken the others.

    Args:
        pixels: The image, uint8 ``[S, S, 3]``.
        side: Rows and columns of the grid.
        cells: Row and column of each cell.
    """
    image, chosen = enlarged(pixels), list(cells)
    bounds = np.linspace(0, image.width, side + 1).round().astype(int).tolist()
    bright = np.asarray(image)
    shade = np.full(bright.shape[:2], 0.35)
    for row, column in chosen:
        shade[bounds[row] : bounds[row + 1], bounds[column] : bounds[column + 1]] = 1
    image = Image.fromarray((bright * shade[:, :, None]).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for row, column in chosen:
        draw.rectangle((bounds[column], bounds[row], bounds[column + 1] - 1, bounds[row + 1] - 1), outline=RED)
    return image


def enlarged(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return an image whose pixels are repeated until it is large enough to be looked at."""
    times = -(-SIDE // len(pixels))
    return Image.fromarray(pixels.repeat(times, axis=0).repeat(times, axis=1))


def grey(image: Image.Image) -> Image.Image:
    """Return an image without colours, as RGB, so that those of a map are its only ones."""
    return image.convert("L").convert("RGB")


def png(image: Image.Image) -> bytes:
    """Return an image as the bytes of a PNG file."""
    data = BytesIO()
    image.save(data, "PNG")
    return data.getvalue()
