"""The accuracy that an INT8 file loses: which images choose its layers, which judge it, and what these show."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.budget import AccuracyBudget, Flips, Shown
from qdeploy.core.metrics import Floats, paired_difference
from qdeploy.data.dataset import Dataset, Split
from qdeploy.export.graph.parity import Answers, run_session
from qdeploy.export.verdict import Loss

CHOOSING_IMAGES = 2000
JUDGING_IMAGES = 5000
"""Validation images, at most."""
FLIP_IMAGES = 5000
"""Training images, at most, that changed predictions are counted on."""
SEED = 0


def choosing_and_judging(val: Split) -> tuple[Split, Split]:
    """Cut validation images into a third that chooses and two thirds that judge, both evenly over the classes.

    The order is seeded. Of a single image both get that one.
    """
    rng = np.random.default_rng(SEED)
    shuffled = rng.permutation(len(val))
    by_class = shuffled[np.argsort(val.labels[shuffled], kind="stable")]
    chooses = np.arange(len(val)) % 3 == 0
    choosing, judging = rng.permutation(by_class[chooses]), rng.permutation(by_class[~chooses])
    return val.take(choosing[:CHOOSING_IMAGES]), val.take((judging if len(judging) else choosing)[:JUDGING_IMAGES])


@dataclass(frozen=True, kw_only=True, eq=False)
class Judges:
    """The images of an export that choose and judge INT8, and what fp32 says of them."""

    fp32: Answers
    dataset: Dataset
    calibrated: frozenset[str]
    """Hashes of the calibration images."""

    @cached_property
    def _parts(self) -> tuple[Split, Split]:
        return choosing_and_judging(self.dataset.splits["val"])

    @property
    def choosing(self) -> Split:
        """Validation images that ranges and float layers are chosen on."""
        return self._parts[0]

    @cached_property
    def choosing_logits(self) -> Floats:
        """Logits of fp32 for ``choosing``, ``[N, K]``."""
        return self.fp32.logits(self.choosing.pixels)

    def loss(self, int8: Answers, test_flips: Flips, budget: AccuracyBudget) -> Loss:
        """Measure what a file loses on images that chose nothing.

        Where these are too few to tell, changed predictions are counted on all images that took no part in
        calibration: no more can be lost.

        Args:
            int8: The INT8 file.
            test_flips: Flips on the test split.
            budget: What may be lost.
        """
        judging = self._parts[1]
        after = int8.logits(judging.pixels)
        difference = paired_difference(after, self._judging_logits, judging.labels)
        if budget.judge(difference) is not Shown.NOT_SHOWN:
            return Loss(difference=difference, flips=None)
        counted = [test_flips, flips_of(self._judging_logits, after)]
        if len(self._training):  # all of a small data set calibrate
            counted.append(flips_of(self._training_logits, run_session(int8.session, self._training)))
        flips = Flips(flips=sum(c.flips for c in counted), n=sum(c.n for c in counted))
        return Loss(difference=difference, flips=flips)

    @cached_property
    def _judging_logits(self) -> Floats:
        return self.fp32.logits(self._parts[1].pixels)

    @cached_property
    def _training(self) -> NDArray[np.uint8]:
        """Training images that did not calibrate, evenly spread."""
        train = self.dataset.splits["train"]
        free = np.flatnonzero([h not in self.calibrated for h in train.hashes])
        return train.pixels[free[:: -(-len(free) // FLIP_IMAGES) or 1]]

    @cached_property
    def _training_logits(self) -> Floats:
        return run_session(self.fp32.session, self._training)


def flips_of(before_NK: Floats, after_NK: Floats) -> Flips:
    """Count the images whose largest logit is another one; of equal ones the lower index counts, on both sides."""
    return Flips(flips=int((before_NK.argmax(1) != after_NK.argmax(1)).sum()), n=len(before_NK))
