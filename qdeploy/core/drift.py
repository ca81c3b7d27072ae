"""Whether a model's answers are still like those that it gave to its validation images (``qdeploy.core.reference``).

They are compared by two figures: the population stability index says how much they differ, a chi-square test of two
samples how likely chance alone makes such a difference. Standard library alone, and constant memory.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from threading import Lock
from typing import Any, Protocol

from qdeploy.core.confidence import score
from qdeploy.core.errors import InputError
from qdeploy.core.reference import Reference
from qdeploy.core.words import percent

CHANGE = 0.1
"""Least population stability index that counts as a change, by convention; above 0.25 it is called a large one."""
FALSE_ALARMS = 0.01
"""Chance that answers to images like the validation images raise an alarm: of a folder, or in a server's whole life."""
LEAST_ANSWERS = 100
"""Fewer answers are not judged."""
WINDOW = 500
"""Answers that are judged together in a server."""
LEAST_EXPECTED = 5.0
"""Answers that a cell of the chi-square test must expect; rarer classes are taken together."""
PARTS = ("score", "confidence", "classes")
_LOWER = {"score": "lower scores", "confidence": "less sure"}
_HIGHER = {"score": "higher scores", "confidence": "surer"}
_OTHER = {"score": "otherwise spread scores", "confidence": "otherwise spread confidence"}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How one of the three histograms differs."""

    psi: float
    """Population stability index; 0 is no difference."""
    p: float
    """Chance of a difference as large as this between answers to images of the same kind, in [0, 1]."""
    differs: bool
    """Whether ``psi`` is a change, and ``p`` small enough for an alarm."""
    how: str
    """In which way, in words."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether some answers differ from those to the validation images."""

    n: int
    """Answers that were judged."""
    false_alarms: float
    """Chance that this verdict is a false alarm if the images are like the validation images; at most."""
    score: Difference
    confidence: Difference
    classes: Difference

    @property
    def parts(self) -> dict[str, Difference]:
        """The three differences by their names in ``PARTS``."""
        return {name: getattr(self, name) for name in PARTS}

    @property
    def differs(self) -> bool:
        """Whether any of the three differs."""
        return any(part.differs for part in self.parts.values())

    def text(self, which: str) -> str:
        """Say it in one line.

        Args:
            which: The answers in words, such as ``the last 500 answers``.
        """
        found = [f"{part.how} (PSI {part.psi:.2f})" for part in self.parts.values() if part.differs]
        if found:
            return f"{which} differ from those to the validation images: {', '.join(found)}"
        most = max(part.psi for part in self.parts.values())
        return f"{which} are like those to the validation images (PSI {most:.2f} at most)"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {"differs": self.differs, **asdict(self)}


class Answered(Protocol):
    """What is looked at of an answer: ``qdeploy.Prediction`` is one."""

    @property
    def index(self) -> int:
        """Number of the most probable class."""

    @property
    def probability(self) -> float:
        """Its probability."""

    @property
    def energy(self) -> float | None:
        """The score, whether or not a threshold judges by it."""


class Tally:
    """Counts answers into the groups of a reference's histograms."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.n = 0
        self._score, self._confidence = reference.score.edges, reference.confidence.edges
        self.counts = tuple([0] * len(part) for part in _of(reference))
        """The counts of each of ``PARTS``."""

    def see(self, answer: Answered) -> None:
        """Count an answer; one without a score, as of a server, is not."""
        if answer.energy is not None:
            self.add(answer.energy, answer.probability, answer.index)

    def add(self, score: float, confidence: float, index: int) -> None:
        """Count an answer by its three figures."""
        scores, confidences, classes = self.counts
        scores[bisect_right(self._score, score)] += 1
        confidences[bisect_right(self._confidence, confidence)] += 1
        classes[index] += 1
        self.n += 1

    def verdict(self, labels: Sequence[str], false_alarms: float = FALSE_ALARMS) -> Verdict | None:
        """Judge what was counted; None of fewer than ``LEAST_ANSWERS``.

        The rate holds for one look at answers to independent images: who looks again and again as they come needs a
        ``DriftWatch``.

        Args:
            labels: Names of the K classes.
            false_alarms: Chance of a false alarm.
        """
        if self.n < LEAST_ANSWERS:
            return None
        level = false_alarms / len(PARTS)  # any of three may be one
        found = {
            name: _difference(name, expected, counts, level, labels)
            for name, expected, counts in zip(PARTS, _of(self.reference), self.counts, strict=True)
        }
        return Verdict(n=self.n, false_alarms=false_alarms, **found)


class DriftWatch:
    """Judges a stream of answers in windows, for as long as it lasts. Safe to use from several threads.

    Each window is judged once, when it is complete. Of all windows together the chance of a false alarm is at most
    ``false_alarms``: the k-th may use ``6 / (pi k)^2`` of it, and these shares sum to 1. As the tails of the test are
    thin, the ten-thousandth window asks for less than three times the difference of the first.

    Args:
        reference: What a card says of the validation images.
        labels: Names of the K classes.
        window: Answers of a window, at least ``LEAST_ANSWERS``.
        false_alarms: Chance that a stream of answers to images like the validation images ever raises an alarm.

    Raises:
        InputError: If the window is too small, or the chance is not between 0 and 1.
    """

    def __init__(
        self,
        reference: Reference,
        labels: Sequence[str],
        window: int = WINDOW,
        false_alarms: float = FALSE_ALARMS,
    ) -> None:
        if window < LEAST_ANSWERS:
            raise InputError(f"a window must have at least {LEAST_ANSWERS} answers", found=window)
        if not 0 < false_alarms < 1:
            raise InputError("the rate of false alarms must be between 0 and 1, both excluded", found=false_alarms)
        self.window = window
        self.false_alarms = false_alarms
        self.windows = 0
        """Complete windows."""
        self.alarms = 0
        """Those that differed."""
        self.latest: Verdict | None = None
        """Of the last complete window; None before the first."""
        self._labels = labels
        self._tally = Tally(reference)
        self._lock = Lock()

    def see(self, answer: Answered) -> None:
        """Count an answer; one without a score is not."""
        if answer.energy is not None:
            self.add(answer.energy, answer.probability, answer.index)

    def add(self, score: float, confidence: float, index: int) -> None:
        """Count an answer by its three figures; the last of a window has it judged."""
        with self._lock:
            self._tally.add(score, confidence, index)
            if self._tally.n == self.window:
                self._judge()

    def add_row(self, logits: Sequence[float], probabilities: Sequence[float], temperature: float) -> None:
        """Count an answer by its K logits and probabilities; one that is not finite is not."""
        probability = max(probabilities)
        found = score(max(logits), probability, temperature)
        if math.isfinite(found + sum(probabilities)):
            self.add(found, probability, probabilities.index(probability))

    @property
    def text(self) -> str:
        """What is known, in one line."""
        if self.latest is None:
            known = f"known after {self.window:,} of them, {self._tally.n:,} so far"
            return f"whether the answers are like those to the validation images is {known}"
        return self.latest.text(f"the last {self.window:,} answers")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "text": self.text,
            "differs": self.latest.differs if self.latest else None,
            "window": self.window,
            "so_far": self._tally.n,
            "windows": self.windows,
            "alarms": self.alarms,
            "false_alarms": self.false_alarms,
            "latest": self.latest.to_dict() if self.latest else None,
        }

    def _judge(self) -> None:
        self.windows += 1
        share = 6 / (math.pi * self.windows) ** 2
        self.latest = self._tally.verdict(self._labels, self.false_alarms * share)
        self.alarms += bool(self.latest and self.latest.differs)
        self._tally = Tally(self._tally.reference)


def psi(expected: Sequence[int], found: Sequence[int]) -> float:
    """Return the population stability index of two histograms with the same groups.

    It is the sum of ``(q - p) ln(q / p)`` over the groups' shares; half an answer is added to each group, since an
    empty one would make it infinite.
    """
    n, m, half = sum(expected), sum(found), 0.5 * len(expected)
    shares = (((a + 0.5) / (n + half), (b + 0.5) / (m + half)) for a, b in zip(expected, found, strict=True))
    return sum((q - p) * math.log(q / p) for p, q in shares)


def two_sample_p(expected: Sequence[int], found: Sequence[int]) -> float:
    """Return the p-value of the chi-square test of homogeneity: that two histograms are of the same population.

    Empty groups do not count. It is as exact as the expected counts are large: at least ``LEAST_EXPECTED`` each.
    """
    n, m = sum(expected), sum(found)
    pairs = [(a, b) for a, b in zip(expected, found, strict=True) if a + b]
    if len(pairs) < 2:
        return 1.0
    statistic = sum((a * math.sqrt(m / n) - b * math.sqrt(n / m)) ** 2 / (a + b) for a, b in pairs)
    return chi_square_tail(statistic, len(pairs) - 1)


def quantile_p(expected: Sequence[int], found: Sequence[int]) -> float:
    """Return the p-value of two histograms where quantiles of the first are the edges of the groups.

    What is by chance there is not the number in a group, as in ``two_sample_p``, but the group's share of the
    population, which may be far smaller than it seems: beside the few hundred images that set the edges, thousands of
    others raised up to five times as many alarms as stated. Square roots have about the same spread whatever the share
    (Freeman and Tukey, 1950), but raise too many alarms of few others. The larger p-value of both raises too many
    nowhere.
    """
    n, m = sum(expected), sum(found)
    if len(expected) < 2:
        return 1.0
    roots = sum(
        (math.sqrt((b + 0.375) / m) - math.sqrt((a + 0.375) / n)) ** 2 for a, b in zip(expected, found, strict=True)
    )
    return max(two_sample_p(expected, found), chi_square_tail(4 * roots * n * m / (n + m), len(expected) - 1))


def grouped(expected: Sequence[int], found: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return two histograms with rare groups taken together, so that each expects ``LEAST_EXPECTED`` in both.

    Which are rare is told by both together: that does not depend on how they differ.
    """
    n, m = sum(expected), sum(found)
    least = LEAST_EXPECTED * (n + m) / min(n, m)
    cells: list[list[int]] = []
    for a, b in sorted(zip(expected, found, strict=True), key=sum):
        if cells and sum(cells[-1]) < least:
            cells[-1][0] += a
            cells[-1][1] += b
        else:
            cells.append([a, b])
    if len(cells) > 1 and sum(cells[-1]) < least:
        a, b = cells.pop()
        cells[-1][0] += a
        cells[-1][1] += b
    return [a for a, _ in cells], [b for _, b in cells]


def chi_square_tail(x: float, df: int) -> float:
    """Return how likely a chi-square variable of so many degrees of freedom is above a value.

    A sum of positive terms, so that small chances are exact, too (Abramowitz and Stegun, 26.4.4 and 26.4.5).
    """
    y = x / 2
    if y <= 0:
        return 1.0
    first, log = df % 2 / 2, math.log(y)
    head = math.erfc(math.sqrt(y)) if df % 2 else 0.0
    terms = (math.exp((first + k) * log - y - math.lgamma(first + k + 1)) for k in range(df // 2))
    return min(1.0, head + sum(terms))


def _of(reference: Reference) -> tuple[tuple[int, ...], ...]:
    """Return the counts of each of ``PARTS``."""
    return reference.score.counts, reference.confidence.counts, reference.classes


def _difference(
    name: str, expected: Sequence[int], found: Sequence[int], level: float, labels: Sequence[str]
) -> Difference:
    cells = grouped(expected, found)
    amount, p = psi(*cells), (two_sample_p if name == "classes" else quantile_p)(*cells)
    how = _classes_words(expected, found, labels) if name == "classes" else _order_words(name, expected, found)
    return Difference(psi=amount, p=p, differs=p < level and amount >= CHANGE, how=how)


def _order_words(name: str, expected: Sequence[int], found: Sequence[int]) -> str:
    """Say in which direction a histogram of numbers has moved, by the mean number of the group."""
    means = [sum(i * count for i, count in enumerate(part)) / sum(part) for part in (expected, found)]
    moved = means[1] - means[0]
    return (_OTHER if abs(moved) < 0.05 * len(expected) else _HIGHER if moved > 0 else _LOWER)[name]


def _classes_words(expected: Sequence[int], found: Sequence[int], labels: Sequence[str]) -> str:
    """Name the class whose share has changed most."""
    n, m = sum(expected), sum(found)
    shares = [(b / m - a / n, a / n, b / m) for a, b in zip(expected, found, strict=True)]
    most = max(range(len(shares)), key=lambda k: abs(shares[k][0]))
    _, before, now = shares[most]
    return f"other classes, first of all {labels[most]}, {percent(now, 0)} instead of {percent(before, 0)}"
