"""Augmentation of a whole batch in one gather.

Array names: B batch, S height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def flip_and_shift(pixels_BSSC: Tensor, *, flip: bool, max_shift: int, generator: torch.Generator) -> Tensor:
    """Mirror half of the images and move each by up to ``max_shift`` pixels; the border is repeated.

    Args:
        pixels_BSSC: Images ``[B, S, S, 3]`` of any dtype.
        flip: Whether to mirror at all.
        max_shift: Largest move in pixels, along each axis, in both directions.
        generator: Source of the choices, on the CPU whatever the device, so that a seed means the same.
    """
    count, size = pixels_BSSC.shape[:2]
    dy, dx = torch.randint(-max_shift, max_shift + 1, (2, count, 1), generator=generator)
    grid = torch.arange(size)
    rows, columns = (grid + dy).clamp(0, size - 1), (grid + dx).clamp(0, size - 1)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    device = pixels_BSSC.device
    index = torch.arange(count, device=device)[:, None, None]
    return pixels_BSSC[index, rows.to(device)[:, :, None], columns.to(device)[:, None, :]]


def normalise(pixels_BSSC: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Turn uint8 ``[B, S, S, 3]`` into normalised float32 ``[B, 3, S, S]`` (channels-last in memory)."""
    return ((pixels_BSSC.float() / 255.0 - mean) / std).permute(0, 3, 1, 2)
