"""Checks that two forms of a model give the same answers on real images.

Array names: N images, S size, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import VerdictError
from qdeploy.core.machine import compute_threads
from qdeploy.core.metrics import Floats, Parity, sqnr_db
from qdeploy.runtime.session import Session

BATCH = 64
"""Images of the largest batch whose answers are compared with those of smaller ones."""
RUN_BATCH = 8
"""Larger ones are no faster, and an open session keeps the memory of its largest."""
FOLD_TOLERANCE = 1e-5
FP32_TOLERANCE = 1e-4
HALF_TOLERANCE = 0.02
"""Largest difference between 16-bit floats and float32, relative to the largest answer."""
INT8_MIN_SQNR_DB = 10.0
"""Below this an INT8 graph is broken rather than coarse; sound ones reach 20 to 35 dB."""
BATCH_MIN_SQNR_DB = 30.0
"""Other kernels round a float differently, and so an integer now and then; a wrong batch axis gives about 0 dB."""


def require_equal(step: str, parity: Parity, tolerance: float) -> None:
    """Stop the export if a float step changed the logits.

    Raises:
        VerdictError: If a difference exceeds the tolerance or is NaN.
    """
    if not parity.max_abs <= tolerance:
        raise VerdictError(
            f"parity failed at '{step}': logits differ by {parity.max_abs:.2e} on {parity.n} images, at most "
            f"{tolerance:.0e} is allowed; nothing was exported"
        )


def require_sound(step: str, parity: Parity, least_db: float | None = None) -> None:
    """Stop the export if a step to another precision broke the model.

    Raises:
        VerdictError: If the signal-to-noise ratio is below ``least_db``, by default ``INT8_MIN_SQNR_DB``.
    """
    least_db = INT8_MIN_SQNR_DB if least_db is None else least_db
    if not parity.sqnr_db >= least_db:
        raise VerdictError(
            f"parity failed at '{step}': {parity.sqnr_db:.1f} dB on {parity.n} images, at least "
            f"{least_db:.0f} dB is required; nothing was exported"
        )


def require_same_in_batches(step: str, session: Session, pixels_NSSC: NDArray[np.uint8], logits_NK: Floats) -> None:
    """Stop the export if an image's answer depends on how many are asked for at once.

    Raises:
        VerdictError: If logits in batches of 1 or 7 differ from those in batches of ``BATCH`` by more than rounding.
    """
    few = pixels_NSSC[: min(14, len(pixels_NSSC))]
    for size in (1, 7):
        again = np.concatenate([session.infer(few[i : i + size])[0] for i in range(0, len(few), size)])
        found = sqnr_db(logits_NK[: len(few)], again)
        if not found >= BATCH_MIN_SQNR_DB:
            raise VerdictError(
                f"parity failed at '{step}': in batches of {size} the logits differ from those in batches of {BATCH} "
                f"({found:.1f} dB, at least {BATCH_MIN_SQNR_DB:.0f} required); nothing was exported"
            )


class Answers:
    """What an opened model answers; each image is run once, however often it is asked for."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._known: dict[bytes, tuple[Floats, Floats]] = {}

    def outputs(self, pixels_NSSC: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Return the logits and the probabilities, both ``[N, K]``; a batch of images is in memory at a time."""
        keys = [blake2b(np.ascontiguousarray(p).data, digest_size=16).digest() for p in pixels_NSSC]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        if new:
            rows = zip(*run_outputs(self.session, pixels_NSSC, chosen=list(new.values())), strict=True)
            self._known.update(zip(new, rows, strict=True))
        logits, probabilities = zip(*(self._known[key] for key in keys), strict=True)
        return np.stack(logits), np.stack(probabilities)

    def logits(self, pixels_NSSC: NDArray[np.uint8]) -> Floats:
        """Return the logits ``[N, K]``."""
        return self.outputs(pixels_NSSC)[0]


def run_session(session: Session, pixels_NSSC: NDArray[np.uint8], batch: int = RUN_BATCH) -> Floats:
    """Return a session's logits ``[N, K]`` for any number of images; as many batches at once as there are cores."""
    return run_outputs(session, pixels_NSSC, batch)[0]


def run_outputs(
    session: Session, pixels_NSSC: NDArray[np.uint8], batch: int = RUN_BATCH, chosen: Sequence[int] | None = None
) -> tuple[Floats, Floats]:
    """Return the logits and the probabilities, both ``[N, K]``, of all images or some; else as ``run_session``."""
    order = np.arange(len(pixels_NSSC)) if chosen is None else np.asarray(chosen)
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    with ThreadPoolExecutor(compute_threads()) as pool:
        answers = pool.map(lambda some: session.infer(pixels_NSSC[some]), batches)
        logits, probabilities = zip(*answers, strict=True)
    return np.concatenate(logits), np.concatenate(probabilities)
