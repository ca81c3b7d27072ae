"""MixUp and CutMix: a batch is blended with itself in another order, and so are its labels.

Per batch at most one of the two, with one share for the whole batch, as in the paper's collate step.

Array names: B batch, C colour, H and W height and width, K classes.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from qdeploy.core.errors import InputError
from qdeploy.training.randaugment import upload

MIXUP_ALPHA = 0.2
"""Parameter of the share's Beta distribution; not given in the paper, the usual value (Zhang et al., 2018)."""
CUTMIX_ALPHA = 1.0
"""Parameter of the share's Beta distribution; not given in the paper, the usual value (Yun et al., 2019)."""
PROBABILITY = (0.1, 0.2)
"""Probability of MixUp, and of CutMix, in phase 1 and 2. Not in the paper; moderate: train accuracy does not drop."""

Choice = Literal["none", "mixup", "cutmix"]


def mix_probabilities(phase2: bool, confidence: float, mixup: bool, cutmix: bool) -> tuple[float, float]:
    """Return the probabilities of MixUp and of CutMix for a batch; the more confident the model, the more of both.

    Args:
        phase2: Whether the run is in its second half.
        confidence: Confidence of the controller, 0 to 1; scales by 0.8 to 1.2.
        mixup: Whether MixUp is on; else its probability is 0.
        cutmix: Whether CutMix is on; else its probability is 0.
    """
    scale = min(max(1.0 + 0.2 * (confidence - 0.5) * 2.0, 0.8), 1.2)
    probability = PROBABILITY[1 if phase2 else 0] * scale
    return probability * mixup, probability * cutmix


def choose_mix(probabilities: tuple[float, float], generator: torch.Generator) -> Choice:
    """Choose what happens to a batch, given the probabilities of MixUp and of CutMix; always one draw."""
    drawn = float(torch.rand((), generator=generator))
    if drawn < probabilities[0]:
        return "mixup"
    return "cutmix" if drawn < sum(probabilities) else "none"


def mix(image_BCHW: Tensor, target_BK: Tensor, choice: Choice, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blend every image and its target with a partner's; the partners are the batch in a random order.

    Args:
        image_BCHW: Float images, on any device; they stay as they are.
        target_BK: Class probabilities on the same device, such as one-hot; they stay as they are.
        choice: What to do; ``"none"`` returns the input.
        generator: Source of share, partners and box, on the CPU; draws the same amount whatever the choice.

    Returns:
        Images ``[B, C, H, W]`` and targets ``[B, K]``; CutMix's targets have the exact share of the pasted area.

    Raises:
        InputError: If there is no such choice.
    """
    if choice not in get_args(Choice):
        raise InputError(f"there is no mixing named '{choice}'; known: {', '.join(get_args(Choice))}")
    seed = int(torch.randint(2**62, (), generator=generator))
    partner_B = upload(torch.randperm(len(image_BCHW), generator=generator), image_BCHW.device)
    source = np.random.default_rng(seed)  # torch has no Beta that takes a generator
    if choice == "mixup":
        own = float(source.beta(MIXUP_ALPHA, MIXUP_ALPHA))
        # into a clone, which keeps the layout; index_select gives a contiguous tensor
        mixed_BCHW = image_BCHW.clone().lerp_(image_BCHW.index_select(0, partner_B), 1.0 - own)
    elif choice == "cutmix":
        mixed_BCHW, own = _paste(image_BCHW, partner_B, source)
    else:
        return image_BCHW, target_BK
    return mixed_BCHW, torch.lerp(target_BK.index_select(0, partner_B), target_BK, own)


def cut_box(own: float, centre: tuple[int, int], height: int, width: int) -> tuple[int, int, int, int]:
    """Return top, bottom, left and right, in pixels, of the box that is pasted; it ends at the image's border.

    Args:
        own: Share of the area that the image keeps if the box does not meet the border.
        centre: Row and column of the box's centre.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
    """
    half = 0.5 * math.sqrt(1.0 - own)
    half_height, half_width = int(half * height), int(half * width)
    top, bottom = max(centre[0] - half_height, 0), min(centre[0] + half_height, height)
    left, right = max(centre[1] - half_width, 0), min(centre[1] + half_width, width)
    return top, bottom, left, right


def _paste(image_BCHW: Tensor, partner_B: Tensor, source: np.random.Generator) -> tuple[Tensor, float]:
    """Paste the partners' box into a copy; returns it and the exact share of the area that is the image's own."""
    height, width = image_BCHW.shape[2:]
    own = float(source.beta(CUTMIX_ALPHA, CUTMIX_ALPHA))
    centre = int(source.integers(height)), int(source.integers(width))
    top, bottom, left, right = cut_box(own, centre, height, width)
    mixed_BCHW = image_BCHW.clone()
    mixed_BCHW[:, :, top:bottom, left:right] = image_BCHW[:, :, top:bottom, left:right].index_select(0, partner_B)
    return mixed_BCHW, 1.0 - (bottom - top) * (right - left) / (height * width)
