"""Checks before a sweep starts, so that it does not fail an hour later; nothing is written."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from qdeploy.core.errors import InputError, MissingDependencyError
from qdeploy.core.files import dated_folder, require_writable
from qdeploy.core.progress import Progress
from qdeploy.data.catalog import find_place, location_of
from qdeploy.models import registry
from qdeploy.study.process import LocalPool, Pool
from qdeploy.study.record import RECORD, SWEEPS, Model
from qdeploy.study.settings import SweepConfig
from qdeploy.training.device import choose_precision
from qdeploy.training.recipes import TrainConfig, config_from_recipe


def grid() -> tuple[str, ...]:
    """Return the models of a sweep that names none.

    Raises:
        InputError: If this version has no grid.
    """
    return registry.GRID


def completed(config: SweepConfig) -> SweepConfig:
    """Fill in what the recipe decides: data and seed; and check the recipe, its changed fields and the device.

    Raises:
        InputError: If there is no such recipe, field value or device.
    """
    recipe = _recipe(config)
    choose_precision(recipe.device, recipe.amp)
    return replace(config, data=recipe.data, seed=recipe.seed)


def known_models(config: SweepConfig, fetching: Progress | None = None) -> dict[str, Model]:
    """Check every model's name and the data, and count the models.

    Args:
        config: With its models and data named.
        fetching: Called with the bytes of a download of the data.

    Raises:
        InputError: If there is no such model or data set.
    """
    size = _recipe(config).input_size
    for name in config.models:  # before the data is looked at: a misspelt name costs no download
        registry.model_config(name, 2, size)
    classes = len(find_place(str(config.data), fetching).read().classes)
    found = {}
    for name in config.models:
        s = registry.summarise(name, classes, size)
        found[name] = Model(name=name, family=s.family, params=s.params, macs=s.macs, input_size=s.input_size)
    return found


def most_epochs(config: SweepConfig) -> int:
    """Return the epochs of a sweep without a budget, which are the most of one with it."""
    return _recipe(config).epochs


def _recipe(config: SweepConfig) -> TrainConfig:
    given = {"data": config.data, "epochs": config.epochs, "seed": config.seed, "device": config.device}
    return config_from_recipe(config.recipe, **given, **config.settings)


def free_folder(config: SweepConfig, out: Path | None) -> Path:
    """Choose a new sweep's folder; nothing is created.

    Raises:
        InputError: If the given one is not empty or cannot be written.
    """
    if out is None:
        out = dated_folder(SWEEPS, Path(location_of(str(config.data))).name)
    if out.is_dir() and any(out.iterdir()):
        if (out / RECORD).exists():
            raise InputError(f"{out} already holds a sweep", fix="give another `out`, or go on with it by `resume`")
        raise InputError(f"{out} already holds files", fix="give another `out`")
    require_writable(out)
    return out


def open_pool(config: SweepConfig) -> Pool:
    """Open what runs the trainings.

    Raises:
        MissingDependencyError: If it is Ray and that is not installed.
    """
    if not config.ray:
        return LocalPool(config.jobs, config.threads)
    try:
        leaf: Any = importlib.import_module("qdeploy.study.ray_pool")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        raise MissingDependencyError(
            "`ray` needs ray, which is not installed", command="pip install 'qdeploy[ray]'"
        ) from error
    pool: Pool = leaf.RayPool(config.jobs, config.threads, gpu=config.device in ("auto", "cuda"))
    return pool
