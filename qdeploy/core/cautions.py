"""What a person should know before trusting an accuracy: each function finds one thing and says it in a sentence.

A confusion matrix has a row for each true label and a column for each answer. Nothing here needs numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qdeploy.core.intervals import wilson_interval

LEAST_IMAGES = 10
"""Test images of a class below which its accuracy says nothing."""
WIDE_POINTS = 5.0
"""Half width of an accuracy's interval, in points, from which it is named where no budget is asked about."""
NAMED = 5
"""Names that are listed at most."""
Confusion = Sequence[Sequence[int]]


def cautions(labels: Sequence[str], confusion: Confusion, *, split: str, budget: float | None = None) -> list[str]:
    """Return what is to be said of an accuracy.

    Args:
        labels: The K labels.
        confusion: Numbers of images, ``[K][K]``.
        split: What the images are called, ``test`` say.
        budget: Points of top-1 that the accuracy is to tell apart; None where nothing is compared.
    """
    found = (
        one_answer(labels, confusion, split) or no_better_than_the_largest_class(labels, confusion, split),
        wide_interval(confusion, split, budget),
        few_images(labels, confusion, split),
    )
    return [text for text in found if text]


def one_answer(labels: Sequence[str], confusion: Confusion, split: str) -> str:
    """Say that all images got one label; empty if they did not, or are of one class."""
    answers = [sum(column) for column in zip(*confusion, strict=True)]
    n = sum(answers)
    if n == 0 or max(answers) < n or sum(1 for row in confusion if sum(row)) < 2:
        return ""
    name = labels[answers.index(n)]
    return f"all {n} {split} images are answered '{name}': the model does not tell them apart"


def no_better_than_the_largest_class(labels: Sequence[str], confusion: Confusion, split: str) -> str:
    """Say that naming the most frequent class would be about as good; empty if it would not."""
    sizes = [sum(row) for row in confusion]
    right = sum(row[k] for k, row in enumerate(confusion))
    if sum(1 for size in sizes if size) < 2 or not at_chance(right, sum(sizes), max(sizes)):
        return ""
    n, largest = sum(sizes), max(sizes)
    better = "hardly" if right > largest else "no"
    return (
        f"{100 * right / n:.1f} % of the {split} images are right; naming '{labels[sizes.index(largest)]}' for every "
        f"one would give {100 * largest / n:.1f} %: the model is {better} better than that"
    )


def at_chance(right: float, n: int, largest: float) -> bool:
    """Tell whether an accuracy is not shown to be better than naming the largest class.

    Args:
        right: Right answers.
        n: Images.
        largest: Images of the largest class.
    """
    return n > 0 and wilson_interval(right / n, n)[0] <= largest / n


def wide_interval(confusion: Confusion, split: str, budget: float | None = None) -> str:
    """Say that so few images cannot show what is asked of them; empty if they can."""
    n = sum(map(sum, confusion))
    if n == 0:
        return ""
    low, high = wilson_interval(sum(row[k] for k, row in enumerate(confusion)) / n, n)
    points, limit = 50 * (high - low), WIDE_POINTS if budget is None else budget
    if points <= limit:
        return ""
    what = f"differences of {budget:g} point{'s' * (budget != 1)}" if budget is not None else "smaller differences"
    needed = math.ceil(n * (points / limit) ** 2 / 100) * 100
    return (
        f"{n} {split} images give the accuracy to +- {points:.1f} points: {what} cannot be seen in it; about "
        f"{needed:,} images would show {limit:g}"
    )


def few_images(labels: Sequence[str], confusion: Confusion, split: str) -> str:
    """Say which classes have fewer than ``LEAST_IMAGES`` images, but some; empty if none has."""
    few = {label: sum(row) for label, row in zip(labels, confusion, strict=True) if 0 < sum(row) < LEAST_IMAGES}
    if not few:
        return ""
    listed = ", ".join(f"{label} ({n})" for label, n in list(few.items())[:NAMED])
    more = f" and {len(few) - NAMED} more" if len(few) > NAMED else ""
    return (
        f"{len(few)} class{'es have' if len(few) > 1 else ' has'} fewer than {LEAST_IMAGES} {split} images, so that "
        f"nothing is known of {'them' if len(few) > 1 else 'it'}: {listed}{more}"
    )


def within_noise(accuracies: Mapping[str, float], n: int) -> str:
    """Say which models are as good as the best as far as one run and n test images each can tell.

    Args:
        accuracies: Top-1 in percent by the model's name, of one run each.
        n: Test images, the same for all.

    Returns:
        A sentence; empty if the best is clearly the best.
    """
    if len(accuracies) < 2 or n < 1:
        return ""
    best = max(accuracies, key=lambda name: accuracies[name])
    close = [name for name in accuracies if name != best and _close(accuracies[best], accuracies[name], n)]
    if not close:
        return ""
    listed = ", ".join(close[:NAMED]) + (f" and {len(close) - NAMED} more" if len(close) > NAMED else "")
    return (
        f"one run each on {n} test images does not tell {best} from {listed}: their accuracies differ by less than "
        "chance explains; several seeds would tell"
    )


def _close(one: float, other: float, n: int) -> bool:
    a, b = one / 100, other / 100
    return abs(a - b) <= 1.959964 * math.sqrt((a * (1 - a) + b * (1 - b)) / n)
