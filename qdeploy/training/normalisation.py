"""Mean and standard deviation of the colours, by which a model's input is normalised."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD

Colours = tuple[float, float, float]
NORMALISATIONS: dict[str, tuple[Colours, Colours]] = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "cifar-10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}
"""Published constants: mean and standard deviation of red, green and blue, of pixels in [0, 1]; CIFAR-10's are the
thesis' (5.2), whose deviations are means over images of the deviation within an image."""
PART = 1024
"""Images measured at once: a large set is read from a file."""
LEAST_STD = 1e-3
"""Of a colour that never changes."""


def colour_statistics(pixels_NSSC: NDArray[np.uint8]) -> tuple[Colours, Colours]:
    """Return mean and standard deviation of each colour over all pixels of all images, rounded to four digits.

    Args:
        pixels_NSSC: uint8 images; at least one.
    """
    sums = np.zeros((2, 3))
    for start in range(0, len(pixels_NSSC), PART):
        part = pixels_NSSC[start : start + PART].reshape(-1, 3) / 255.0
        sums += [part.sum(0), np.square(part).sum(0)]
    mean, square = sums / (pixels_NSSC.size / 3)
    std = np.sqrt(np.maximum(square - mean**2, LEAST_STD**2))
    red, green, blue = (round(float(v), 4) for v in mean)
    spread = [round(float(v), 4) for v in std]
    return (red, green, blue), (spread[0], spread[1], spread[2])
