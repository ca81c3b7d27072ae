"""Augmentation of a whole batch: every image makes its own choices, which are applied with whole-batch operations.

All choices come from one draw of a CPU generator of a fixed size, so that a seed means the same on every device and
for every strength, and no device is waited for.

Array names: B batch, S height and width, C colour (3), H and W both S, D and U draws, T tries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from qdeploy.core.errors import InputError, near_miss
from qdeploy.training.randaugment import (
    BINS,
    brighten,
    change_contrast,
    change_saturation,
    rand_augment,
    upload,
)

CROP_RATIO = (3 / 4, 4 / 3)
"""Width by height of a crop; torchvision's default."""
ERASE_RATIO = (0.3, 3.3)
"""Height by width of an erased box; torchvision's default."""
TRIES = 10
"""A box that does not fit is drawn again, up to so many times in all, as in torchvision."""
CPU_PART = 64
"""Images worked on at once on a CPU: 64 of 64 x 64 stay in the cache, 256 took 1.2 to 2 times as long per image."""
_BOX = 2 * TRIES + 2
_FIXED_DRAWS = 2 * _BOX + 5  # two boxes; flip, three of the jitter, erase


@dataclass(frozen=True, kw_only=True)
class Strength:
    """How strongly images are changed; the defaults change nothing but the mirroring."""

    crop_scale: float = 1.0
    """Smallest share of the area that a crop keeps; the largest is 1."""
    jitter: float = 0.0
    """Brightness, contrast and saturation are multiplied by 1 - jitter to 1 + jitter, each by its own."""
    erase_probability: float = 0.0
    """Share of the images with an erased box."""
    erase_scale: tuple[float, float] = (0.01, 0.1)
    """Smallest and largest share of the area that is erased."""
    randaugment: bool = False
    num_ops: int = 2
    """Operations of RandAugment per image; torchvision's default."""
    magnitude: int = 9
    """Magnitude of RandAugment, 0 to 30; torchvision's default."""

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale <= 1:
            raise InputError(f"crop_scale must be above 0 and at most 1, found {self.crop_scale}")
        if not 0 <= self.jitter <= 1:
            raise InputError(f"jitter must be between 0 and 1, found {self.jitter}")
        if not 0 <= self.erase_probability <= 1:
            raise InputError(f"erase_probability must be between 0 and 1, found {self.erase_probability}")
        if not 0 <= self.erase_scale[0] <= self.erase_scale[1] <= 1:
            raise InputError(f"erase_scale must be two rising shares between 0 and 1, found {self.erase_scale}")
        if self.num_ops < 0 or not 0 <= self.magnitude < BINS:
            raise InputError(
                f"num_ops must be at least 0 and magnitude 0 to {BINS - 1}, found {self.num_ops} and {self.magnitude}"
            )


def _phases(
    crop: tuple[float, float], jitter: tuple[float, float], erase: tuple[float, float]
) -> tuple[Strength, Strength]:
    early = Strength(crop_scale=crop[0], jitter=jitter[0], erase_probability=erase[0], erase_scale=(0.01, 0.1))
    late = Strength(crop_scale=crop[1], jitter=jitter[1], erase_probability=erase[1], erase_scale=(0.02, 0.15))
    return early, replace(late, randaugment=True)


REGIMES: dict[str, tuple[Strength, Strength]] = {
    "low": _phases(crop=(0.95, 0.90), jitter=(0.1, 0.2), erase=(0.05, 0.10)),
    "mid": _phases(crop=(0.90, 0.80), jitter=(0.2, 0.3), erase=(0.10, 0.15)),
    "high": _phases(crop=(0.80, 0.65), jitter=(0.2, 0.4), erase=(0.15, 0.30)),
}
"""The paper's regimes, for the first and for the second half of a run (paper, table of the augmentations).

Ours, as the paper does not give them: early erasing of mid and high, erasing scales of both, and mid's late crop, where
it says "0.2", read as 1 - 0.2.
"""


def strength_of(regime: str, phase: int, randaugment: bool = True) -> Strength:
    """Return the strength of a regime's first or second phase.

    Raises:
        InputError: If there is no such regime.
    """
    if regime not in REGIMES:
        raise InputError(
            f"there is no augmentation named '{regime}'{near_miss(regime, REGIMES)}; known: low, mid, high"
        )
    strength = REGIMES[regime][phase - 1]
    return strength if randaugment else replace(strength, randaugment=False)


@torch.no_grad()
def augment(pixels_BSSC: Tensor, strength: Strength, generator: torch.Generator) -> Tensor:
    """Crop and resize, mirror half, apply RandAugment if asked for, jitter the colours, erase a box (paper, IV.E.1).

    The jitter goes brightness, contrast, saturation; torchvision shuffles the three. A box is erased to black.

    Args:
        pixels_BSSC: uint8 images ``[B, S, S, 3]`` on any device.
        strength: How strongly.
        generator: Source of the choices, on the CPU.

    Returns:
        float32 images ``[B, 3, S, S]`` in [0, 1], not normalised, channels-last in memory, on the same device.
    """
    count, size = pixels_BSSC.shape[:2]
    uniform_BD = torch.rand(count, _FIXED_DRAWS + 2 * strength.num_ops, generator=generator)
    part = CPU_PART if pixels_BSSC.device.type == "cpu" else max(count, 1)
    image_BCHW = torch.empty((count, 3, size, size), device=pixels_BSSC.device, memory_format=torch.channels_last)
    for start in range(0, count, part):
        rows = slice(start, start + part)
        image_BCHW[rows] = _augment_part(pixels_BSSC[rows], strength, uniform_BD[rows])
    return image_BCHW


def _augment_part(pixels_BSSC: Tensor, strength: Strength, uniform_BD: Tensor) -> Tensor:
    count, size = pixels_BSSC.shape[:2]
    crop_BU, erase_BU, flip_B1, jitter_B3, chance_B1, ops_BU = uniform_BD.split(
        (_BOX, _BOX, 1, 3, 1, 2 * strength.num_ops), dim=1
    )
    crop_B4 = crop_boxes(crop_BU, strength.crop_scale, size)
    erase_B4 = erase_boxes(erase_BU, strength.erase_scale, size) * (chance_B1 < strength.erase_probability)
    factor_B3 = 1.0 + strength.jitter * (2.0 * jitter_B3 - 1.0)
    choice_B12 = upload(torch.cat([crop_B4, erase_B4, (flip_B1 < 0.5).float(), factor_B3], dim=1), pixels_BSSC.device)
    crop_B4, erase_B4, flip_B1, factor_B3 = choice_B12.split((4, 4, 1, 3), dim=1)
    image_BCHW = crop_and_flip(pixels_BSSC, crop_B4, flip_B1 > 0.5, resize=strength.crop_scale < 1)
    if strength.randaugment:
        image_BCHW = rand_augment(image_BCHW, ops_BU.view(count, strength.num_ops, 2), strength.magnitude)
    if strength.jitter:
        for change, factor_B in zip((brighten, change_contrast, change_saturation), factor_B3.unbind(1), strict=True):
            image_BCHW = change(image_BCHW, factor_B)
    if strength.erase_probability:
        image_BCHW = erase(image_BCHW, erase_B4)
    return image_BCHW


def crop_boxes(uniform_BU: Tensor, min_share: float, size: int) -> Tensor:
    """Choose a box per image: area uniform in [min_share, 1], ratio log-uniform; the whole image if ten do not fit.

    Args:
        uniform_BU: Random numbers in [0, 1): ten areas, ten ratios, two places.
        min_share: Smallest share of the area.
        size: Height and width of the images in pixels.

    Returns:
        ``[B, 4]``: top, left, height, width in whole pixels, as float32.
    """
    area_BT, ratio_BT, place_B2 = _box_draws(uniform_BU, (min_share, 1.0), CROP_RATIO)
    width_BT, height_BT = ((area_BT * r).sqrt().mul(size).round() for r in (ratio_BT, 1.0 / ratio_BT))
    fits_BT = (width_BT > 0) & (width_BT <= size) & (height_BT > 0) & (height_BT <= size)
    return _first_box(height_BT, width_BT, fits_BT, place_B2, size, otherwise=size)


def erase_boxes(uniform_BU: Tensor, scale: tuple[float, float], size: int) -> Tensor:
    """Choose a box per image as ``crop_boxes`` does; an empty one if ten do not fit.

    Args:
        uniform_BU: Random numbers in [0, 1): ten areas, ten ratios, two places.
        scale: Smallest and largest share of the area.
        size: Height and width of the images in pixels.
    """
    area_BT, ratio_BT, place_B2 = _box_draws(uniform_BU, scale, ERASE_RATIO)
    height_BT, width_BT = ((area_BT * r).sqrt().mul(size).round() for r in (ratio_BT, 1.0 / ratio_BT))
    return _first_box(height_BT, width_BT, (height_BT < size) & (width_BT < size), place_B2, size, otherwise=0)


def _box_draws(
    uniform_BU: Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ten shares of the area, ten ratios of the sides, and the place of the box in its free room."""
    area_BT, ratio_BT, place_B2 = uniform_BU.split((TRIES, TRIES, 2), dim=1)
    ratio_BT = ratio[0] * (ratio[1] / ratio[0]) ** ratio_BT
    return scale[0] + (scale[1] - scale[0]) * area_BT, ratio_BT, place_B2


def _first_box(
    height_BT: Tensor, width_BT: Tensor, fits_BT: Tensor, place_B2: Tensor, size: int, otherwise: int
) -> Tensor:
    first_B1 = fits_BT.int().argmax(1, keepdim=True)
    sides_B2 = torch.cat([height_BT.gather(1, first_B1), width_BT.gather(1, first_B1)], dim=1)
    sides_B2 = torch.where(fits_BT.any(1, keepdim=True), sides_B2, float(otherwise))
    room_B2 = size - sides_B2
    corner_B2 = torch.minimum((place_B2 * (room_B2 + 1)).floor(), room_B2)
    return torch.cat([corner_B2, sides_B2], dim=1)


def crop_and_flip(pixels_BSSC: Tensor, box_B4: Tensor, flip_B1: Tensor, resize: bool = True) -> Tensor:
    """Resize each image's box to the whole image, bilinear without antialiasing, and mirror some; one sampling.

    The convention is torchvision's: ``align_corners=False``, and the border of the box is repeated.
    ``grid_sample`` takes 0.03 ms per image of 64 x 64 on one thread of the AMD EPYC measured; two products with
    interpolation matrices, rows then columns, take 0.05 ms, and gathers of rows and columns 0.05 to 0.3 ms.

    Args:
        pixels_BSSC: uint8 images.
        box_B4: Top, left, height and width in pixels.
        flip_B1: Which to mirror.
        resize: False says that every box is the whole image; pixels are then only moved, so that they stay exact.

    Returns:
        float32 ``[B, 3, S, S]`` in [0, 1].
    """
    size = pixels_BSSC.shape[1]
    image_BCHW = pixels_BSSC.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255.0)
    if not resize:
        return torch.where(flip_B1[:, :, None, None], image_BCHW.flip(3), image_BCHW)
    share_S = (torch.arange(size, device=pixels_BSSC.device) + 0.5) / size
    corner_B2, sides_B2 = box_B4.split(2, dim=1)
    inside_B2S = torch.minimum((sides_B2[..., None] * share_S - 0.5).clamp(min=0.0), sides_B2[..., None] - 1.0)
    rows_BS, columns_BS = ((inside_B2S + corner_B2[..., None] + 0.5) * (2.0 / size) - 1.0).unbind(1)
    columns_BS = torch.where(flip_B1, columns_BS.flip(1), columns_BS)
    grid_BHW2 = torch.stack(torch.broadcast_tensors(columns_BS[:, None, :], rows_BS[:, :, None]), dim=3)
    return F.grid_sample(image_BCHW, grid_BHW2, mode="bilinear", padding_mode="border", align_corners=False)


def erase(image_BCHW: Tensor, box_B4: Tensor) -> Tensor:
    """Make each image's box (top, left, height, width in pixels) black, in place; an empty box changes nothing."""
    axis_S = torch.arange(image_BCHW.shape[-1], device=image_BCHW.device)
    corner_B21, sides_B21 = box_B4[..., None].split(2, dim=1)
    row_BS, column_BS = ((axis_S >= corner_B21) & (axis_S < corner_B21 + sides_B21)).unbind(1)
    outside_BHW = ~(row_BS[:, :, None] & column_BS[:, None, :])
    return image_BCHW.mul_(outside_BHW[:, None].float())  # faster than masked_fill_ on a CPU


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


def crop_and_mirror(pixels_BSSC: Tensor, side: int, generator: torch.Generator, pad: int = 0) -> Tensor:
    """Cut a square of ``side`` pixels out of each image, anywhere, and mirror half of them.

    Args:
        pixels_BSSC: Images ``[B, S, S, 3]`` of any dtype, S at least ``side``.
        side: Height and width of the result.
        generator: Source of the choices, on the CPU whatever the device.
        pad: Pixels that the square may reach beyond each border, where the image is reflected; less than S.
    """
    count, size = pixels_BSSC.shape[:2]
    top, left = torch.randint(0, size + 2 * pad - side + 1, (2, count, 1), generator=generator) - pad
    grid = torch.arange(side)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    rows, columns = top + grid, left + torch.where(mirrored, grid.flip(0), grid)
    if pad:  # reflected without repeating the border, as torch's and torchvision's "reflect"
        rows, columns = (size - 1 - (size - 1 - i.abs()).abs() for i in (rows, columns))
    device = pixels_BSSC.device
    index = torch.arange(count, device=device)[:, None, None]
    return pixels_BSSC[index, rows.to(device)[:, :, None], columns.to(device)[:, None, :]]


def normalise(pixels_BSSC: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Turn uint8 ``[B, S, S, 3]`` into normalised float32 ``[B, 3, S, S]`` (channels-last in memory)."""
    return ((pixels_BSSC.float() / 255.0 - mean) / std).permute(0, 3, 1, 2)
