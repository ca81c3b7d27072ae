"""The stress set: images that no validation split holds and a camera gives all the same, in float and in INT8.

Array names: N images, S size, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.metrics import Floats
from qdeploy.export.graph.parity import run_session
from qdeploy.runtime.session import Session

Pixels = NDArray[np.uint8]
CONFIDENT = 0.9
"""Probability from which fp32's answer is one that INT8 must not replace by another."""
BROKEN_DB = 0.0
"""Below this the error of the logits is larger than what the logits themselves say of the classes."""
FAR_WORSE_DB = 15.0
"""How far below the validation images' median an image lies that is broken: a model that is coarse everywhere is
judged by its accuracy, not here."""
INVERTED = 4
SEED = 0


@dataclass(frozen=True, kw_only=True)
class StressRow:
    """What INT8 answers to one image of the stress set."""

    name: str
    fp32_finite: bool
    finite: bool
    """Whether all of INT8's logits are numbers."""
    sqnr_db: float | None
    """SQNR in decibels of the logits around their mean; None if exact or not finite."""
    same_top1: bool
    confidence: float | None
    """Probability of fp32's answer; None if it is not finite."""
    broken: bool
    """Whether INT8 replaces a confident answer and agrees with fp32 far worse than on validation images, or answers
    where fp32 gives no number."""


@dataclass(frozen=True, kw_only=True)
class Stress:
    """The stress set of one INT8 file."""

    val_sqnr_db: float | None
    """Median over validation images of the same SQNR; None if INT8 is exact there."""
    rows: tuple[StressRow, ...]

    @property
    def not_finite(self) -> tuple[str, ...]:
        """Names of the images whose answer is no number in INT8."""
        return tuple(r.name for r in self.rows if not r.finite)

    @property
    def broken(self) -> tuple[str, ...]:
        """Names of the images that INT8 answers with no regard to fp32."""
        return tuple(r.name for r in self.rows if r.broken)

    @property
    def mendable(self) -> bool:
        """Whether an image is answered badly that layers left in float would mend: fp32 answers it."""
        return any(r.fp32_finite and (r.broken or not r.finite) for r in self.rows)


def stress_images(val_NSSC: Pixels) -> dict[str, Pixels]:
    """Return the images ``[S, S, 3]`` by name; some are made from validation images ``[N, S, S, 3]``."""
    shape = val_NSSC.shape[1:]
    size = shape[0]
    half, pixel = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    half[:, size // 2 :] = 255
    pixel[size // 2, size // 2] = 255
    images = {name: np.full(shape, value, np.uint8) for name, value in (("black", 0), ("white", 255), ("grey", 128))}
    images |= {"half black, half white": half, "a single white pixel": pixel, "white but for one pixel": 255 - pixel}
    images["noise"] = np.random.default_rng(SEED).integers(0, 256, shape, np.uint8)
    for bits in range(1, 7):
        colour = [255 * (bits >> c & 1) for c in range(3)]
        images[f"colour {', '.join(map(str, colour))}"] = np.broadcast_to(np.array(colour, np.uint8), shape)
    contrast = val_NSSC.reshape(len(val_NSSC), -1).std(axis=1)
    images["validation image of lowest contrast"] = val_NSSC[contrast.argmin()]
    images["validation image of highest contrast"] = val_NSSC[contrast.argmax()]
    for i, image in enumerate(val_NSSC[:INVERTED]):
        images[f"validation image {i}, inverted"] = 255 - image
    return images


@dataclass(frozen=True, kw_only=True, eq=False)
class StressSet:
    """The images of the stress set, and what fp32 answers to them."""

    names: tuple[str, ...]
    pixels: Pixels
    """``[N, S, S, 3]``"""
    logits: Floats
    """Those of fp32, ``[N, K]``."""

    @classmethod
    def of(cls, fp32: Session, val_NSSC: Pixels) -> StressSet:
        """Ask a float file.

        Args:
            fp32: The float file.
            val_NSSC: Validation images, of which some images are made.
        """
        images = stress_images(val_NSSC)
        pixels = np.stack(list(images.values()))
        return cls(names=tuple(images), pixels=pixels, logits=run_session(fp32, pixels))

    @property
    def not_finite(self) -> tuple[str, ...]:
        """Names of the images whose answer is no number in float."""
        return tuple(name for name, row in zip(self.names, np.isfinite(self.logits), strict=True) if not row.all())

    def judge(self, int8: Session, val_before_NK: Floats, val_after_NK: Floats) -> Stress:
        """Run the set through an INT8 file.

        Args:
            int8: The file.
            val_before_NK: What fp32 gives for validation images.
            val_after_NK: What INT8 gives for them.
        """
        after = run_session(int8, self.pixels)
        usual = float(np.median(centred_db(val_before_NK, val_after_NK)))
        found = centred_db(self.logits, after)
        each = zip(self.names, self.logits, after, found, strict=True)
        rows = tuple(_row(name, b, a, float(db), usual) for name, b, a, db in each)
        return Stress(val_sqnr_db=usual if math.isfinite(usual) else None, rows=rows)

    def squared_error(self, int8: Session) -> float:
        """Return the squared error of the logits around their mean, over the images that fp32 answers."""
        sound = np.isfinite(self.logits).all(axis=1)
        errors = run_session(int8, self.pixels[sound]).astype(np.float64) - self.logits[sound]
        with np.errstate(invalid="ignore"):
            total = float(np.square(errors - errors.mean(axis=1, keepdims=True)).sum())
        return total if math.isfinite(total) else math.inf


def centred_db(before_NK: Floats, after_NK: Floats) -> NDArray[np.float64]:
    """Return each image's SQNR of the logits around their mean, which says nothing of the classes."""
    with np.errstate(invalid="ignore", over="ignore"):
        a, b = (x.astype(np.float64) - x.astype(np.float64).mean(axis=1, keepdims=True) for x in (before_NK, after_NK))
        noise, signal = np.square(a - b).sum(axis=1), np.square(a).sum(axis=1)
        ratio = np.where(noise == 0, np.inf, np.maximum(signal, 1e-30) / np.maximum(noise, 1e-300))
        decibels: NDArray[np.float64] = 10 * np.log10(ratio)
    return decibels


def _row(name: str, before: Floats, after: Floats, db: float, usual: float) -> StressRow:
    finite, sound = bool(np.isfinite(after).all()), bool(np.isfinite(before).all())
    confidence = None
    if sound:
        shifted = np.exp(before.astype(np.float64) - before.max())
        confidence = float(shifted.max() / shifted.sum())
    same = bool(before.argmax() == after.argmax())
    far = finite and sound and db < BROKEN_DB and db < usual - FAR_WORSE_DB
    return StressRow(
        name=name,
        fp32_finite=sound,
        finite=finite,
        sqnr_db=db if math.isfinite(db) else None,
        same_top1=same and finite,
        confidence=confidence,
        broken=(finite and not sound) or (far and not same and confidence is not None and confidence >= CONFIDENT),
    )
