"""What labelled images say of a file from elsewhere: another normalisation, another order of its classes.

Nothing is changed: what is found is said, with the options that would do it.

Array names: N images, S side, K classes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from qdeploy.core.artifact import CARD_KEY
from qdeploy.core.intervals import mcnemar_p, wilson_interval
from qdeploy.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from qdeploy.data.dataset import Dataset
from qdeploy.export.sources.foreign import Three
from qdeploy.export.sources.inputs import Entrance
from qdeploy.export.sources.onnx_file import OnnxSource, file_predictions

IMAGES, FEWEST = 500, 60
SECONDS = 20.0
"""Time for all trials; with a slow file fewer images are tried."""
CLEAR_P, CLEAR_POINTS = 0.001, 5.0
"""McNemar's p and the points of top-1 from which a difference is no accident of ten trials."""
FAR_BELOW = 10.0
"""Points of top-1 below what a file claims of itself."""
CLAIM = re.compile(r"(?i)(.*[^a-z])?(acc(uracy)?|acc@?1|top[-_ ]?1)([^a-z0-9].*)?")
Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A usual normalisation, for pixels from 0 to 1."""

    words: str
    mean: Three
    std: Three


PRESETS = (
    Preset(words="ImageNet's `mean` and `std`", mean=IMAGENET_MEAN, std=IMAGENET_STD),
    Preset(words="`mean=0` and `std=1`", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    Preset(words="`mean=0.5` and `std=0.5`", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    Preset(words="`range=0-255`", mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255)),
    Preset(
        words="`range=0-255` and `mean=123.68,116.779,103.939`",
        mean=(123.68 / 255, 116.779 / 255, 103.939 / 255),
        std=(1 / 255, 1 / 255, 1 / 255),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Better:
    """Something else that the file may expect."""

    share: float
    """Share of the images that would be right, in [0, 1]."""
    text: str


def what_data_say(source: OnnxSource, dataset: Dataset) -> list[str]:
    """Return what is worth saying of a file, from its answers to labelled images that are not for calibration."""
    pixels, labels = _images(dataset)
    begin = time.perf_counter()
    first = file_predictions(source, pixels[:FEWEST], source.entrance, source.rules)
    each_s = (time.perf_counter() - begin) / len(first)
    n = int(min(len(pixels), max(FEWEST, SECONDS / (2 * len(PRESETS) * each_s))))
    more = file_predictions(source, pixels[FEWEST:n], source.entrance, source.rules) if n > FEWEST else first[:0]
    answers, labels = np.concatenate([first, more]), labels[:n]
    better = [*_other_order(source, dataset.classes, answers, labels)]
    if source.entrance is not None and not source.entrance.raw:
        better += _other_input(source, source.entrance, pixels[:n], answers, labels)
    best = max(better, key=lambda found: found.share, default=None)  # one slip makes another look like one
    texts = [*_claim(source.original, answers, labels), *([best.text] if best else [])]
    if not texts and _at_chance(answers, labels, len(dataset.classes)):
        texts.append(
            f"the file is right about {_percent(answers, labels)} of {n} images, no more than by chance: check "
            "`labels`, `range`, `mean`, `std` and `colours`"
        )
    return texts


def _images(dataset: Dataset) -> tuple[NDArray[np.uint8], Integers]:
    """Return images of test and validation, mixed, always in the same order."""
    parts = [dataset.splits[name] for name in ("test", "val")]
    places = [(part, i) for part in parts for i in range(len(part))]
    chosen = [places[i] for i in np.random.default_rng(0).permutation(len(places))[:IMAGES]]
    labels = np.asarray([int(part.labels[i]) for part, i in chosen], np.int64)
    return np.stack([np.asarray(part.pixels[i]) for part, i in chosen]), labels


def _share(answers: Integers, labels: Integers) -> float:
    return float((answers == labels).mean())


def _percent(answers: Integers, labels: Integers) -> str:
    return f"{100 * _share(answers, labels):.1f} %"


def _at_chance(answers: Integers, labels: Integers, classes: int) -> bool:
    share = _share(answers, labels)
    return len(labels) >= FEWEST and wilson_interval(share, len(labels))[0] <= 1 / classes


def _clearly_better(new: Integers, old: Integers, labels: Integers) -> bool:
    gained, lost = int(((new == labels) & (old != labels)).sum()), int(((new != labels) & (old == labels)).sum())
    return 100 * (gained - lost) / len(labels) >= CLEAR_POINTS and mcnemar_p(lost, gained) < CLEAR_P


def _other_input(
    source: OnnxSource, entrance: Entrance, pixels: NDArray[np.uint8], answers: Integers, labels: Integers
) -> Iterator[Better]:
    """Say which usual normalisation, and which order of colours, would be clearly better."""
    best, words = answers, ""
    for bgr in (False, True) if entrance.channels == 3 else (False,):
        for preset in PRESETS:
            rules = Preprocessing(size=source.rules.size, mean=preset.mean, std=preset.std)
            found = file_predictions(source, pixels, replace(entrance, bgr=bgr), rules)
            if (found == labels).sum() > (best == labels).sum():
                same = (rules.mean, rules.std) == (source.rules.mean, source.rules.std)
                parts = ([] if same else [preset.words]) + (
                    [] if bgr == entrance.bgr else [f"`colours={'bgr' if bgr else 'rgb'}`"]
                )
                best, words = found, " and ".join(parts)
    if words and _clearly_better(best, answers, labels):
        yield Better(
            share=_share(best, labels),
            text=f"with {words} accuracy would be {_percent(best, labels)} instead of {_percent(answers, labels)} on "
            f"{len(labels)} images; nothing was changed",
        )


def _other_order(source: OnnxSource, classes: tuple[str, ...], answers: Integers, labels: Integers) -> Iterator[Better]:
    """Say if the file seems to have its classes in another order than the data."""
    if source.labels is None and all(c.isascii() and c.isdigit() for c in classes):
        by_number = sorted(range(len(classes)), key=lambda k: int(classes[k]))
        counted = np.asarray(by_number, np.int64)[answers]
        if _clearly_better(counted, answers, labels):
            yield Better(
                share=_share(counted, labels),
                text=f"with its classes in the order of numbers and not of text accuracy would be "
                f"{_percent(counted, labels)} instead of {_percent(answers, labels)} on {len(labels)} images: give "
                "`labels` in that order; nothing was changed",
            )
            return
    own, other = np.arange(len(labels)) % 2 == 0, np.arange(len(labels)) % 2 == 1
    order = _best_order(answers[own], labels[own], len(classes))
    if other.any() and _clearly_better(order[answers[other]], answers[other], labels[other]):
        moved = [f"'{classes[k]}' for '{classes[to]}'" for k, to in enumerate(order.tolist()) if k != to]
        yield Better(
            share=_share(order[answers[other]], labels[other]),
            text=f"with its classes in another order accuracy would be "
            f"{_percent(order[answers[other]], labels[other])} instead of {_percent(answers[other], labels[other])} on "
            f"{int(other.sum())} images (it answers {', '.join(moved[:3])}{', ...' if len(moved) > 3 else ''}): give "
            "`labels` in the order of its outputs; nothing was changed",
        )


def _best_order(answers: Integers, labels: Integers, classes: int) -> Integers:
    """Return for each answer the class that it most often stands for, each class once: the largest counts first."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (answers, labels), 1)
    order = np.full(classes, -1, np.int64)
    taken: set[int] = set()
    for flat in np.argsort(-counts, axis=None, kind="stable").tolist():
        answer, label = divmod(flat, classes)
        if counts[answer, label] and order[answer] < 0 and label not in taken:
            order[answer] = label
            taken.add(label)
    free = iter([k for k in range(classes) if k not in taken])
    stay = [k for k in np.flatnonzero(order < 0).tolist() if k not in taken]
    for k in stay:
        order[k] = k
    rest = iter([k for k in free if k not in stay])
    for k in np.flatnonzero(order < 0).tolist():
        order[k] = next(rest)
    return order


def _claim(model: onnx.ModelProto, answers: Integers, labels: Integers) -> Iterator[str]:
    """Say if a file is far below the accuracy that its metadata claim."""
    share = _share(answers, labels)
    high = 100 * wilson_interval(share, len(labels))[1]
    for entry in model.metadata_props:
        if entry.key == CARD_KEY or not CLAIM.fullmatch(entry.key):
            continue
        try:
            claimed = float(entry.value.strip().rstrip("%"))
        except ValueError:
            continue
        claimed = 100 * claimed if 0 < claimed <= 1 else claimed
        if 0 < claimed <= 100 and claimed - high > FAR_BELOW:
            yield (
                f"the file claims {claimed:.1f} % (metadata '{entry.key}'), and is right about "
                f"{_percent(answers, labels)} of {len(labels)} images: check `labels`, `range`, `mean`, `std` and "
                "`colours`"
            )
