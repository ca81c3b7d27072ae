"""Preprocessing of an image into the model's input, by rules that are stored in every artifact.

This is the one implementation: training, calibration, prediction, benchmarks and serving share it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from qdeploy.core.errors import InputError
from qdeploy.core.image_formats import FORMATS, chosen_formats

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

FILTERS = ("bilinear", "bicubic")
RESIZE_NOTE = ", antialiased"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes a model's input.

    The centre square is cut out and resized to ``size`` (antialiased).
    The model's graph itself normalises: ``(pixel / 255 - mean) / std`` per channel.
    """

    size: int = 64
    """Height and width of the input in pixels."""
    interpolation: str = "bilinear"
    """bilinear or bicubic."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    background: tuple[int, int, int] = (255, 255, 255)
    """Colour behind transparent pixels."""
    formats: tuple[str, ...] = field(default=FORMATS, compare=False)
    """Which files are taken: a choice of whoever runs the model, and no rule of the model's."""

    def __post_init__(self) -> None:
        if type(self.size) is not int or self.size < 1:
            raise InputError(f"preprocessing size must be a positive whole number, found {self.size}")
        if self.interpolation not in FILTERS:
            raise InputError(f"interpolation must be one of {', '.join(FILTERS)}, found '{self.interpolation}'")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise InputError(f"preprocessing {name} must be three finite numbers, found {values}")
        if not all(map(math.isfinite, self.mean)):
            raise InputError(f"preprocessing mean must be three finite numbers, found {self.mean}")
        if not all(0 < s < math.inf for s in self.std):
            raise InputError(f"preprocessing std must be positive and finite, found {self.std}")

    def __call__(self, source: Path | bytes | Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn a path, a file's bytes, a PIL image or a uint8 array into uint8 ``[size, size, 3]``, RGB.

        Raises:
            ImageError: If the source is not a usable image.
        """
        import numpy as np

        if isinstance(source, np.ndarray) and self._is_ready(source):
            return source  # what the rules would copy, at a cost of 25 microseconds
        return self.resize(self.open(source))

    def to_bytes(self, source: Path | bytes | Image.Image | NDArray[np.uint8]) -> bytes:
        """Return the same as bytes; numpy is not needed."""
        if not isinstance(source, (bytes, Path)) and self._is_ready(source):
            return source.data.tobytes()  # not source.tobytes(): that of a masked array fills
        return self.fit(self.open(source)).tobytes()

    def _is_ready(self, source: Image.Image | NDArray[np.uint8]) -> TypeGuard[NDArray[np.uint8]]:
        found = getattr(source, "dtype", None), getattr(source, "shape", None)
        return found == ("uint8", (self.size, self.size, 3))

    def open(self, source: Path | bytes | Image.Image | NDArray[np.uint8]) -> Image.Image:
        """Turn a source into an upright RGB image of its own size; the rules are the same for every kind."""
        images = _images()
        if isinstance(source, (bytes, Path)):
            return images.decode(source, self.background, self.formats)
        if isinstance(source, images.Image.Image):
            return images.rgb_from_pil(source, self.background)
        return images.rgb_from_array(source, self.background)

    def fit(self, image: Image.Image) -> Image.Image:
        """Cut the centre square of an RGB image and resize it."""
        width, height = image.size
        if width == height == self.size:
            return image
        size, side = self.size, min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        how = _images().Image.Resampling[self.interpolation.upper()]
        if height > width:
            # Pillow rounds after each direction; since 13 it begins with the columns of many tall images, which gives
            # other pixels than before and than on devices: so the rows have a call of their own
            margin = 2 * max(1.0, side / size) + 1  # as far as the wider filter reaches
            first, last = max(0, int(top - margin)), min(height, int(top + side + margin) + 1)
            image = image.resize((size, last - first), how, box=(0, first, side, last))
            return image.resize((size, size), how, box=(0, top - first, size, top + side - first))
        return image.resize((size, size), how, box=(left, top, left + side, top + side))

    def resize(self, image: Image.Image) -> NDArray[np.uint8]:
        """Do as ``fit`` does, and give uint8 ``[size, size, 3]``."""
        import numpy as np

        return np.asarray(self.fit(image))

    def taking(self, formats: Iterable[str] | None) -> Preprocessing:
        """Return the same rules for files of some formats only, such as ``["jpeg", "png"]``; of all for None.

        Raises:
            InputError: If one is unknown.
        """
        return self if formats is None else replace(self, formats=chosen_formats(formats))

    def to_dict(self) -> dict[str, Any]:
        """Return every rule as JSON-ready values, with a hash over all of them."""
        rules = {
            **{name: value for name, value in asdict(self).items() if name not in ("interpolation", "formats")},
            "exif_transpose": True,
            "colour": "RGB",
            "sixteen_bit": "upper 8 bits",
            "crop": "centre square",
            "resize": f"{self.interpolation}{RESIZE_NOTE}",
        }
        text = json.dumps(rules, sort_keys=True)
        return {**json.loads(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Preprocessing:
        """Rebuild from ``to_dict`` and check the hash.

        Raises:
            InputError: If the rules are not those of this version of qdeploy.
        """
        try:
            own = cls(
                size=fields["size"],
                interpolation=fields["resize"].removesuffix(RESIZE_NOTE),
                mean=tuple(fields["mean"]),
                std=tuple(fields["std"]),
                background=tuple(fields["background"]),
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(f"the preprocessing rules are incomplete: {error}") from error
        if own.to_dict()["sha256"] != fields.get("sha256"):
            raise InputError("the preprocessing rules differ from this version's; use the qdeploy that wrote them")
        return own


@cache  # an import statement in each call would cost a tenth of what a call may
def _images() -> Any:
    """Load what decodes images, and Pillow with it."""
    from qdeploy.core import image

    return image
