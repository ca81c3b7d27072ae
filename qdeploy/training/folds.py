"""Cross-validation: every image of a data set judged by a model that was trained without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.checks.suspects import Judged
from qdeploy.core.errors import DataError, InputError
from qdeploy.core.run_folder import RunRecord
from qdeploy.data.dataset import SPLITS, Dataset, Split
from qdeploy.data.labelled import image_names
from qdeploy.training.batches import joined_splits
from qdeploy.training.device import choose_precision
from qdeploy.training.distributed import World
from qdeploy.training.progress import Progress, Silent
from qdeploy.training.recipes import TrainConfig, config_from_recipe
from qdeploy.training.run_files import describe
from qdeploy.training.start import build_run, read_data, require_buildable, run_to_end, together
from qdeploy.training.threads import fixed_threads

FOLDS = 5
EPOCHS = 12
"""Epochs of one fold by default; see docs/review.md for what more or fewer find."""
MOST_FOLDS = 20
SMALLEST_BATCH, LEAST_STEPS = 8, 16
"""An epoch has so many steps, down to so small a batch: a handful of steps teaches a model nothing."""


def fold_config(
    data: str,
    images: int,
    *,
    folds: int = FOLDS,
    model: str | None = None,
    epochs: int | None = None,
    formats: str | None = None,
) -> TrainConfig:
    """Return how a fold is trained: the recipe small, with smaller batches where there are few images.

    Args:
        data: Name, folder or archive of a data set.
        images: How many it has.
        folds: How many models are trained.
        model: Which; by default the recipe's, nano.
        epochs: Of each; by default 12.
        formats: Image formats that are taken, separated by commas.

    Raises:
        InputError: If a value is out of range.
    """
    seen = images * (folds - 1) // max(1, folds)
    batch_size = max(SMALLEST_BATCH, min(TrainConfig.batch_size, seen // LEAST_STEPS))
    return config_from_recipe(
        data=data, model=model, epochs=EPOCHS if epochs is None else epochs, batch_size=batch_size, formats=formats
    )


def cross_validated(config: TrainConfig, folds: int = FOLDS, progress: Progress | None = None) -> Judged:
    """Train so many models, each without one part of the images, and ask each about the part it has not seen.

    All splits are thrown together, since any image's label may be wrong. The parts have equal shares of each class. The
    last epoch's weights answer: nothing is chosen by the images that are to be judged. While a model is trained, its
    share of the pixels is in memory once more; what the runs write is removed.

    Args:
        config: One training; needs a recipe with a cosine schedule.
        folds: How many models, 2 to 20.
        progress: Told how far all of them are, epochs counted on from model to model.

    Raises:
        InputError: If a value is out of range, or as ``train`` does.
        DataError: If a class has a single image.
        VerdictError: If a loss is not finite.
    """
    if not 2 <= folds <= MOST_FOLDS:
        raise InputError(f"`folds` must be between 2 and {MOST_FOLDS}", found=folds)
    config = replace(
        config,
        all_images=True,
        ema_decay=0.0,
        guard=False,
        swa=False,
        tensorboard=False,
        threads=fixed_threads(config, None),
    )
    require_buildable(config)
    with together(config, progress) as (world, shown):
        if world.size > 1:
            raise InputError("cross-validation runs in one process", found=f"{world.size}", fix="start it alone")
        dataset = read_data(config, world, shown)
        pooled = joined_splits(*(dataset.splits[name] for name in SPLITS))
        numbers_N = fold_numbers(pooled.labels, folds, config.seed)
        _require_several(dataset, pooled)
        probabilities_NK = np.empty((len(pooled), len(dataset.classes)), np.float32)
        for fold in range(folds):
            held_N = np.flatnonzero(numbers_N == fold)
            rest_N = np.flatnonzero(numbers_N != fold)
            part = _without(dataset, pooled, rest_N, held_N)
            probabilities_NK[held_N] = _answers(config, part, world, _Onward(shown, fold, folds, config.epochs))
    return Judged(
        data=dataset.name,
        by=f"{folds} models ({config.model}, {config.epochs} epochs), each trained without the images it judged",
        classes=dataset.classes,
        names=image_names(dataset, config.data),
        hashes=pooled.hashes,
        labels=pooled.labels,
        probabilities=probabilities_NK,
        problems=dataset.problems,
    )


def fold_numbers(labels_N: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Return each image's part, 0 to ``folds`` - 1, by chance: equal shares of each class, and parts of equal size."""
    rng = np.random.default_rng(seed)
    numbers_N = np.empty(len(labels_N), np.int64)
    begin = 0
    for k in np.unique(labels_N):
        members = rng.permutation(np.flatnonzero(labels_N == k))
        numbers_N[members] = (begin + np.arange(len(members))) % folds
        begin += len(members)
    return numbers_N


def _require_several(dataset: Dataset, pooled: Split) -> None:
    counts = np.bincount(pooled.labels, minlength=len(dataset.classes))
    if (counts < 2).any():
        name = dataset.classes[int((counts < 2).argmax())]
        raise DataError(f"class '{name}' of {dataset.name} has a single image: no model can be trained without it")


def _without(dataset: Dataset, pooled: Split, rest_N: NDArray[np.int64], held_N: NDArray[np.int64]) -> Dataset:
    """Return a data set whose test images are those held out; there are none for validation."""
    nothing = pooled.take(np.empty(0, np.int64))
    splits = {"train": pooled.take(rest_N), "val": nothing, "test": pooled.take(held_N)}
    return replace(dataset, splits=splits)


def _answers(config: TrainConfig, dataset: Dataset, world: World, progress: Progress) -> NDArray[np.float32]:
    """Train a model and return its probabilities of the test images, ``[N, K]``."""
    record = describe(config, dataset, choose_precision(config.device, config.amp), world.size)
    with TemporaryDirectory(prefix="qdeploy-fold-") as folder:
        run = build_run(config, dataset, record, Path(folder), world, progress)
        run_to_end(run)  # leaves the weights that it keeps in the averaged twin
    return run.learner.probabilities(run.learner.average.twin, dataset.splits["test"]).numpy()


class _Onward(Silent):
    """Tells of one of several trainings as of a part of a single one."""

    def __init__(self, progress: Progress, fold: int, folds: int, epochs: int) -> None:
        self._progress, self._first = progress, fold * epochs
        self._fold, self._folds = fold, folds

    def started(self, record: RunRecord, folder: Path) -> None:
        """Tell what is trained."""

    def batch(self, epoch: int, done: int, total: int) -> None:
        """Tell how many batches are done, as of an epoch of the whole."""
        self._progress.batch(self._first + epoch, done, total)

    def epoch(self, row: dict[str, Any]) -> None:
        """Tell an epoch's row, its number counted on."""
        self._progress.epoch({**row, "epoch": self._first + row["epoch"]})
