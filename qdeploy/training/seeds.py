"""Several runs that differ in their seed alone, and the mean and deviation of what they come to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qdeploy.core.errors import InputError
from qdeploy.training.progress import Progress
from qdeploy.training.recipes import TrainConfig
from qdeploy.training.run_files import TrainResult, free_folder
from qdeploy.training.start import train

MOST = 100


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and standard deviation (n - 1) of some runs, in percent; no deviation of one run."""

    n: int
    mean: float
    std: float | None
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class SeedsResult:
    """What several runs came to."""

    runs: tuple[TrainResult, ...]
    val_top1: Spread
    test_top1: Spread


def train_seeds(
    config: TrainConfig, count: int, out: Path | None = None, progress: Progress | None = None
) -> SeedsResult:
    """Train with so many seeds, from the configuration's on; each run has a folder of its own.

    Args:
        config: The first run.
        count: How many runs.
        out: What the folders' names begin with; ``-seed0`` and so on is added.
        progress: Told how far each run is.

    Raises:
        InputError: If the number is out of range, or as ``train`` does.
    """
    if not 1 <= count <= MOST:
        raise InputError(f"`seeds` must be between 1 and {MOST}", found=count)
    if config.seed + count > 2**32:
        raise InputError(f"there are no {count} seeds from {config.seed} on", fix="give a smaller `seed`")
    base = free_folder(config, out)
    folders = [base.with_name(f"{base.name}-seed{config.seed + i}") for i in range(count)]
    for folder in folders:
        free_folder(config, folder)  # before the first takes its hours
    runs = tuple(train(replace(config, seed=config.seed + i), folder, progress) for i, folder in enumerate(folders))
    return SeedsResult(
        runs=runs,
        val_top1=spread([run.val_top1 for run in runs]),
        test_top1=spread([run.test_top1 for run in runs if run.test_top1 is not None]),
    )


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation of some numbers."""
    return Spread(
        n=len(values),
        mean=statistics.fmean(values),
        std=statistics.stdev(values) if len(values) > 1 else None,
        values=tuple(values),
    )
