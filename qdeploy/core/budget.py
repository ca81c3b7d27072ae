"""The accuracy budget: how much may be lost, and whether a measurement shows that no more is lost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from qdeploy.core.errors import InputError
from qdeploy.core.intervals import PairedDifference, wilson_interval


class Shown(str, Enum):
    """What a measurement shows of a loss of accuracy against the budget."""

    WITHIN = "within"
    """The loss and its 95 % margin fit the budget."""
    OVER = "over"
    """The loss exceeds the budget by more than its margin."""
    NOT_SHOWN = "not shown"
    """There are too few images to tell."""


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Images for which two models name different classes. No more than their share can be lost, whatever the labels."""

    flips: int
    n: int

    @property
    def most_points(self) -> float:
        """Upper end of the 95 % interval of the share of flips, in points."""
        return 100 * wilson_interval(self.flips / self.n, self.n)[1]


@dataclass(frozen=True, kw_only=True)
class AccuracyBudget:
    """How many points of top-1 may be lost."""

    points: float

    def __post_init__(self) -> None:
        if not 0 <= self.points <= 100:
            raise InputError(f"`max_drop` must be between 0 and 100 points, found {self.points:g}")

    def judge(self, difference: PairedDifference, flips: Flips | None = None) -> Shown:
        """Return whether a loss is within the budget.

        Args:
            difference: Accuracy of the new model minus that of the old one.
            flips: Flips over more images, whose labels need not be known.
        """
        loss, margin = -difference.points, difference.margin95
        most = min(loss + margin, flips.most_points if flips else math.inf)
        if most <= self.points:
            return Shown.WITHIN
        return Shown.OVER if loss - margin > self.points else Shown.NOT_SHOWN

    def allows(self, difference: PairedDifference) -> bool:
        """Tell whether the estimate itself fits the budget, shown or not."""
        return -difference.points <= self.points

    def tolerates(self, difference: PairedDifference, flips: Flips | None = None, *, strict: bool = False) -> bool:
        """Tell whether a loss is acceptable: within the budget, or by the estimate where that is not shown.

        Args:
            difference: Accuracy of the new model minus that of the old one.
            flips: As in ``judge``.
            strict: Accept only what is shown to be within the budget.
        """
        shown = self.judge(difference, flips)
        return shown is Shown.WITHIN or (shown is Shown.NOT_SHOWN and self.allows(difference) and not strict)

    def images_needed(self, difference: PairedDifference) -> int | None:
        """Return about how many images would show a loss of this size to be within the budget; None if none would."""
        room = self.points + difference.points
        return math.ceil(difference.n * (difference.margin95 / room) ** 2) if room > 0 else None
