"""RandAugment of a whole batch: every image draws its own operations, each is applied to all that drew it.

The set, the magnitudes and the signs are torchvision's (``RandAugment``; Cubuk et al., 2019): 14 operations, 31 bins
of magnitude, nearest-neighbour sampling, black outside. Two things differ. Values stay float32 between the
operations, where torchvision's uint8 images are cut to whole 255ths after each; and the 5 geometric operations of a
round are one sampling.

Array names: B batch, N operations per image, C colour (3), H and W height and width, O places in ``OPS``, R images
times colours, P pixels, L levels of 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 31
"""Magnitudes are whole numbers from 0 to 30."""
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
OPS = (
    *("Identity", *GEOMETRIC, "Brightness", "Color", "Contrast", "Sharpness"),
    *("Posterize", "Solarize", "AutoContrast", "Equalize"),
)
SIGNED = (*GEOMETRIC, "Brightness", "Color", "Contrast", "Sharpness")
_GREY = (0.2989, 0.587, 0.114)  # ITU-R 601, rounded as torchvision rounds it


def amount_of(op: str, magnitude: int, size: int) -> float:
    """Translate a magnitude of 0 to 30 into what an operation understands.

    Returns:
        Slope of a shear, whole pixels of a move, degrees of a rotation, distance of a factor from 1, bits kept by
        Posterize, threshold in [0, 1] of Solarize; 0 where there is nothing to say. Without a sign.
    """
    share = magnitude / (BINS - 1)
    if op in ("ShearX", "ShearY"):
        return 0.3 * share
    if op in ("TranslateX", "TranslateY"):
        return float(int(150.0 * size * share / 331.0 + 1e-6))
    if op == "Rotate":
        return 30.0 * share
    if op in SIGNED:
        return 0.9 * share
    return {"Posterize": 8.0 - round(4.0 * share), "Solarize": 1.0 - share}.get(op, 0.0)


def rand_augment(image_BCHW: Tensor, uniform_BN2: Tensor, magnitude: int) -> Tensor:
    """Apply N operations to every image, in place.

    Args:
        image_BCHW: Square float32 images in [0, 1], on any device.
        uniform_BN2: Random numbers in [0, 1), on the CPU: per operation its choice and its sign.
        magnitude: 0 to 30.

    Returns:
        The same tensor, its values in [0, 1].
    """
    size = image_BCHW.shape[-1]
    amount_O = torch.tensor([amount_of(op, magnitude, size) for op in OPS])
    signed_O = torch.tensor([op in SIGNED for op in OPS])
    for uniform_B2 in uniform_BN2.unbind(1):
        op_B = (uniform_B2[:, 0] * len(OPS)).long()
        negative_B = (uniform_B2[:, 1] < 0.5) & signed_O[op_B]
        amount_B = torch.where(negative_B, -amount_O[op_B], amount_O[op_B])
        apply_round(image_BCHW, op_B, amount_B)
    return image_BCHW


def apply_round(image_BCHW: Tensor, op_B: Tensor, amount_B: Tensor) -> None:
    """Apply to each image its one operation; all grouping is done on the CPU, so that no device is waited for."""
    group_B = _GROUP_OF_OP[op_B]
    order_B = group_B.argsort(stable=True)
    counts = torch.bincount(group_B, minlength=len(_GROUPS)).tolist()
    geometric_B = order_B[: counts[0]]
    parameter_B = upload(amount_B[order_B], image_BCHW.device).split(counts)
    rows_B = upload(order_B, image_BCHW.device).split(counts)
    for group, rows, parameter in zip(_GROUPS, rows_B, parameter_B, strict=True):
        if not len(rows) or group == "Identity":
            continue
        part = image_BCHW.index_select(0, rows)
        if group == "Geometry":
            map_B24 = inverse_map(op_B[geometric_B], amount_B[geometric_B])
            part = warp(part, upload(map_B24, part.device))
        else:
            part = _COLOUR[group](part, parameter)
        image_BCHW.index_copy_(0, rows, part)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a small CPU tensor to a device without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def inverse_map(op_B: Tensor, amount_B: Tensor) -> Tensor:
    """Give the affine maps from output to source, in pixels from the image's centre; shears hold the top left corner.

    Args:
        op_B: Places in ``OPS`` of geometric operations.
        amount_B: Signed slopes, pixels or degrees.

    Returns:
        ``[B, 2, 4]``: factors of x, of y, of 1 and of the image's size, for source x and source y.
    """
    is_op = {name: (op_B == OPS.index(name)).float() for name in GEOMETRIC}
    angle_B = torch.deg2rad(amount_B * is_op["Rotate"])
    shear_x, shear_y = amount_B * is_op["ShearX"], amount_B * is_op["ShearY"]
    cosine, sine = angle_B.cos(), angle_B.sin()
    x_B4 = torch.stack([cosine, shear_x - sine, -amount_B * is_op["TranslateX"], shear_x / 2], dim=1)
    y_B4 = torch.stack([shear_y + sine, cosine, -amount_B * is_op["TranslateY"], shear_y / 2], dim=1)
    return torch.stack([x_B4, y_B4], dim=1)


def warp(image_BCHW: Tensor, map_B24: Tensor) -> Tensor:
    """Sample each image through its map (``inverse_map``), the nearest pixel, black outside."""
    size = image_BCHW.shape[-1]
    axis = torch.arange(size, device=image_BCHW.device) - (size - 1) / 2
    x_factor, y_factor, shift, size_factor = map_B24[..., None, None].unbind(2)
    source_B2HW = x_factor * axis + y_factor * axis[:, None] + (shift + size_factor * size)
    grid_BHW2 = (source_B2HW / (0.5 * size)).permute(0, 2, 3, 1)
    return F.grid_sample(image_BCHW, grid_BHW2, mode="nearest", padding_mode="zeros", align_corners=False)


def brighten(image_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Multiply by a factor of at least 0, in place."""
    return image_BCHW.mul_(factor_B[:, None, None, None]).clamp_(max=1.0)


def change_contrast(image_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Blend with the mean grey, in place: 0 is flat, 1 changes nothing."""
    return _blend(image_BCHW, grey_of(image_BCHW).mean((1, 2, 3), keepdim=True), factor_B)


def change_saturation(image_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Blend with the grey image, in place: 0 is grey, 1 changes nothing."""
    return _blend(image_BCHW, grey_of(image_BCHW), factor_B)


def sharpen(image_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Blend with a 3x3 blur (centre 5, others 1), in place; the outermost pixels stay."""
    if image_BCHW.shape[-1] <= 2:
        return image_BCHW
    inner_columns = image_BCHW[..., 1:-1]
    inner = inner_columns[..., 1:-1, :]
    # sums of rows, then of columns: a tenth of the time of avg_pool2d or of a depthwise convolution on a CPU
    sum_of_3 = (image_BCHW[..., :-2] + inner_columns).add_(image_BCHW[..., 2:])
    sum_of_9 = (sum_of_3[..., :-2, :] + sum_of_3[..., 1:-1, :]).add_(sum_of_3[..., 2:, :])
    _blend(inner, sum_of_9.add_(inner, alpha=4.0).div_(13.0), factor_B)
    return image_BCHW


def posterize(image_BCHW: Tensor, bits_B: Tensor) -> Tensor:
    """Keep the highest bits of 8-bit values."""
    step = torch.exp2(8.0 - bits_B)[:, None, None, None]
    return image_BCHW.mul_(255.0).round_().div_(step).floor_().mul_(step).div_(255.0)


def solarize(image_BCHW: Tensor, threshold_B: Tensor) -> Tensor:
    """Invert what is at least the threshold."""
    return torch.where(image_BCHW >= threshold_B[:, None, None, None], 1.0 - image_BCHW, image_BCHW)


def stretch_contrast(image_BCHW: Tensor, _: Tensor) -> Tensor:
    """Spread every channel over [0, 1]; a channel of one value stays."""
    low, high = image_BCHW.amin((2, 3), keepdim=True), image_BCHW.amax((2, 3), keepdim=True)
    flat = high == low
    low, spread = torch.where(flat, 0.0, low), torch.where(flat, 1.0, high - low)
    return image_BCHW.sub_(low).div_(spread).clamp_(0.0, 1.0)


def equalize(image_BCHW: Tensor, _: Tensor) -> Tensor:
    """Make every channel's histogram of 8-bit values even, with Pillow's rounding; a channel of one value stays."""
    batch, channels, height, width = image_BCHW.shape
    level_RP = image_BCHW.mul(255.0).round_().long().reshape(batch * channels, height * width)
    histogram_RL = torch.zeros(batch * channels, 256, dtype=torch.int32, device=image_BCHW.device)
    histogram_RL.scatter_add_(1, level_RP, torch.ones_like(level_RP, dtype=torch.int32))
    below_RL = histogram_RL.cumsum(1) - histogram_RL
    # Pillow's step leaves out the pixels of the channel's highest value
    step_R1 = below_RL.gather(1, level_RP.amax(1, keepdim=True)).div(255, rounding_mode="floor")
    table_RL = (below_RL + step_R1 // 2).div(step_R1.clamp(min=1), rounding_mode="floor").clamp_(max=255)
    table_RL = torch.where(step_R1 > 0, table_RL, torch.arange(256, device=image_BCHW.device))
    return table_RL.float().div_(255.0).gather(1, level_RP).view_as(image_BCHW)


def grey_of(image_BCHW: Tensor) -> Tensor:
    """Give the grey image ``[B, 1, H, W]``."""
    red, green, blue = image_BCHW.split(1, dim=1)
    return red.mul(_GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2])


def _blend(image_BCHW: Tensor, other: Tensor, factor_B: Tensor) -> Tensor:
    """Give ``factor * image + (1 - factor) * other``, in place and cut to [0, 1]."""
    factor_B111 = factor_B[:, None, None, None]
    return image_BCHW.mul_(factor_B111).add_(other * (1.0 - factor_B111)).clamp_(0.0, 1.0)


_COLOUR: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": lambda image, amount: brighten(image, 1.0 + amount),
    "Color": lambda image, amount: change_saturation(image, 1.0 + amount),
    "Contrast": lambda image, amount: change_contrast(image, 1.0 + amount),
    "Sharpness": lambda image, amount: sharpen(image, 1.0 + amount),
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": stretch_contrast,
    "Equalize": equalize,
}
_GROUPS = ("Geometry", "Identity", *_COLOUR)  # geometry first: its rows are the head of the order
_GROUP_OF_OP = torch.tensor([0 if op in GEOMETRIC else _GROUPS.index(op) for op in OPS])
