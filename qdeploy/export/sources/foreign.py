"""What a user says of an ONNX file from elsewhere: its labels, its inputs, which of its outputs counts."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

from qdeploy.core.errors import InputError, near_miss
from qdeploy.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD

Three = tuple[float, float, float]
RANGES = ("0-1", "0-255")
COLOURS = ("rgb", "bgr")
SMALLEST_IMAGE, LARGEST_IMAGE = 1, 4096


@dataclass(frozen=True, kw_only=True)
class ForeignConfig:
    """What cannot be read off the graph; all of it may be left out."""

    labels: tuple[str, ...] | Path | None = None
    """The K class names in the order of the outputs, or a file of them, one a line or as JSON; by default what the
    file's metadata, or the files beside it, say, and else the data's classes in their order."""
    mean: Three | None = None
    """What is taken from red, green and blue, in the units of ``range``; by default ImageNet's for 0-1, else 0."""
    std: Three | None = None
    """What that is divided by; by default ImageNet's for 0-1, else 1."""
    range: str = "0-1"
    """The values of a pixel before mean and std: 0-1, or 0-255."""
    colours: str = "rgb"
    """Order of the channels that the graph takes: rgb, or bgr as OpenCV and Caffe have it."""
    output: str | None = None
    """Name of the output, or of any tensor, that holds logits or probabilities; by default the only one that can."""
    size: int | None = None
    """Side of the images in pixels, for a graph that takes any; None where the graph says it."""

    def __post_init__(self) -> None:
        for name, known in (("range", RANGES), ("colours", COLOURS)):
            value = getattr(self, name)
            if value not in known:
                raise InputError(
                    f"`{name}` must be one of {', '.join(known)}", found=f"'{value}'{near_miss(str(value), known)}"
                )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and (len(values) != 3 or not all(map(math.isfinite, values))):
                raise InputError(f"`{name}` must be three finite numbers", found=", ".join(map(str, values)))
        if self.std is not None and min(self.std) <= 0:
            raise InputError("`std` must be positive", found=", ".join(map(str, self.std)))
        if self.size is not None and not SMALLEST_IMAGE <= self.size <= LARGEST_IMAGE:
            raise InputError(f"`size` must be between {SMALLEST_IMAGE} and {LARGEST_IMAGE}", found=self.size)
        self._require_one_scale()

    def _require_one_scale(self) -> None:
        """Refuse numbers that count pixels from 0 to 255 where ``range`` says 0-1, and the other way round."""
        mean, std = self.mean or (0.0, 0.0, 0.0), self.std or (1.0, 1.0, 1.0)
        if self.range == "0-1" and (max(map(abs, mean)) > 1 or max(std) > 10):
            wrong, values = ("mean", mean) if max(map(abs, mean)) > 1 else ("std", std)
            raise InputError(
                f"`{wrong}` is given for pixels from 0 to 1",
                found=", ".join(f"{v:g}" for v in values),
                fix="divide `mean` and `std` by 255, or say `range=0-255`",
            )
        if self.range == "0-255" and 0 < max(map(abs, mean)) < 1 and max(std) < 1:
            raise InputError(
                "`mean` and `std` are given for pixels from 0 to 255",
                found=", ".join(f"{v:g}" for v in (*mean, *std)),
                fix="multiply both by 255, or say `range=0-1`",
            )

    @property
    def given(self) -> list[str]:
        """Names of the fields that were given."""
        return [f.name for f in fields(self) if getattr(self, f.name) != f.default]

    def normalisation(self, *, plain: bool) -> tuple[Three, Three]:
        """Return mean and std for pixels from 0 to 1.

        Args:
            plain: Whether nothing is taken or divided unless it was given.
        """
        wide = self.range == "0-255"
        zero, one = (IMAGENET_MEAN, IMAGENET_STD) if not plain and not wide else ((0.0,) * 3, (1.0,) * 3)
        mean, std = self.mean or zero, self.std or one
        unit = 255.0 if wide else 1.0
        return (mean[0] / unit, mean[1] / unit, mean[2] / unit), (std[0] / unit, std[1] / unit, std[2] / unit)
