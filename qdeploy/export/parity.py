"""Whether two forms of a model give the same answers on real images.

Array names: N images, S size, K classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import VerdictError
from qdeploy.core.metrics import Floats, agreement, sqnr_db
from qdeploy.runtime.session import Session

BATCH = 64
FOLD_TOLERANCE = 1e-5
FP32_TOLERANCE = 1e-4
INT8_MIN_SQNR_DB = 10.0
"""Below this an INT8 graph is broken rather than coarse; sound ones reach 20 to 35 dB."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Agreement of a step's result with the step before."""

    max_abs: float
    """Largest difference of a logit."""
    sqnr_db: float
    top1_agreement: float
    """In [0, 1]."""
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Give JSON-ready values; an exact match has an sqnr_db of None."""
        values = asdict(self)
        return {**values, "sqnr_db": values["sqnr_db"] if np.isfinite(values["sqnr_db"]) else None}


def measure(reference_NK: Floats, result_NK: Floats) -> Parity:
    """Compare logits."""
    return Parity(
        max_abs=float(np.abs(reference_NK - result_NK).max()),
        sqnr_db=sqnr_db(reference_NK, result_NK),
        top1_agreement=agreement(reference_NK, result_NK),
        n=len(reference_NK),
    )


def require_equal(step: str, parity: Parity, tolerance: float) -> None:
    """Stop the export if a float step changed the logits.

    Raises:
        VerdictError: If a difference exceeds the tolerance or is not a number.
    """
    if not parity.max_abs <= tolerance:
        raise VerdictError(
            f"parity failed at '{step}': logits differ by {parity.max_abs:.2e} on {parity.n} images, at most "
            f"{tolerance:.0e} is allowed; nothing was exported"
        )


def require_sound(step: str, parity: Parity) -> None:
    """Stop the export if an INT8 step broke the model.

    Raises:
        VerdictError: If the signal-to-noise ratio is below ``INT8_MIN_SQNR_DB``.
    """
    if not parity.sqnr_db >= INT8_MIN_SQNR_DB:
        raise VerdictError(
            f"parity failed at '{step}': {parity.sqnr_db:.1f} dB on {parity.n} images, at least "
            f"{INT8_MIN_SQNR_DB:.0f} dB is required; nothing was exported"
        )


def run_session(session: Session, pixels_NSSC: NDArray[np.uint8]) -> Floats:
    """Give a session's logits ``[N, K]`` for any number of images."""
    starts = range(0, len(pixels_NSSC), BATCH)
    return np.concatenate([session.infer(pixels_NSSC[i : i + BATCH])[0] for i in starts])
