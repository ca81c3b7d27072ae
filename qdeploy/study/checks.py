"""Checks before a sweep starts, so that it does not fail an hour later; nothing is written."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from qdeploy.core.errors import InputError, MissingDependencyError
from qdeploy.core.files import dated_folder
from qdeploy.core.progress import Progress
from qdeploy.core.whole import files_in, require_writable
from qdeploy.core.words import counted
from qdeploy.data.catalog import find_place, location_of
from qdeploy.models import registry
from qdeploy.study.process import LocalPool, Pool
from qdeploy.study.record import RECORD, SWEEPS, Model
from qdeploy.study.settings import DEVICE_TARGET, SweepConfig
from qdeploy.training.device import choose_precision
from qdeploy.training.recipes import TrainConfig, config_from_recipe, require_no_recipe


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
        require_no_recipe(name)
        registry.model_config(name, 2, size)
    classes = len(find_place(str(config.data), fetching).read().classes)
    found = {}
    for name in config.models:
        s = registry.summarise(name, classes, size)
        found[name] = Model(name=name, family=s.family, params=s.params, macs=s.macs, input_size=s.input_size)
    return found


def small_enough(config: SweepConfig, models: dict[str, Model], note: Callable[[str], None]) -> dict[str, Model]:
    """Leave out what has more parameters than is allowed, but the baseline.

    Raises:
        InputError: If nothing is left to compare.
    """
    if config.max_params is None:
        return models
    kept = {n: m for n, m in models.items() if m.params <= config.max_params or n == config.baseline}
    if not any(name != config.baseline for name in kept):
        least = min(m.params for m in models.values())
        raise InputError(f"no model has at most {config.max_params:,} parameters; the smallest has {least:,}")
    if left_out := len(models) - len(kept):
        note(f"left out: {counted(left_out, 'model')} with more than {config.max_params:,} parameters")
    return kept


def fitting(config: SweepConfig, models: dict[str, Model], note: Callable[[str], None]) -> dict[str, Model]:
    """Leave out what needs more flash or RAM than is allowed, or cannot be compiled to C, but the baseline.

    Raises:
        InputError: If nothing is left to compare.
    """
    if not config.on_integers:
        return models
    classes = len(find_place(str(config.data)).read().classes)
    kept = {}
    for name, model in models.items():
        reason = "" if name == config.baseline else _too_large(config, model, classes)
        if reason:
            note(f"{name} is left out: {reason}")
        else:
            kept[name] = model
    if not any(name != config.baseline for name in kept):
        limits = {"`max_flash`": config.max_flash, "`max_ram`": config.max_ram}
        said = " and ".join(f"{name} of {limit:,} bytes" for name, limit in limits.items() if limit is not None)
        raise InputError(f"no model fits {said}", fix="the model made for that is pico")
    return kept


def _too_large(config: SweepConfig, model: Model, classes: int) -> str:
    """Return why a model does not fit, in words; empty if it does."""
    from qdeploy.export.memory import memory_on_integers
    from qdeploy.native.lowering import UnsupportedError

    if config.max_flash is not None and model.params > config.max_flash:  # a weight is a byte at least
        return f"it has {model.params:,} parameters, and `max_flash` is {config.max_flash:,} bytes"
    untrained = registry.model_config(model.name, classes, model.input_size).build()
    try:
        needed = memory_on_integers(untrained, model.input_size, DEVICE_TARGET)
    except UnsupportedError as error:
        return f"{error.kind}: {error.why}"
    for kind, limit in (("flash", config.max_flash), ("ram", config.max_ram)):
        if limit is not None and needed[f"whole_{kind}_bytes"] > limit:
            return f"it needs {needed[f'whole_{kind}_bytes']:,} bytes, and `max_{kind}` is {limit:,}"
    return ""


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
    if out.is_dir() and files_in(out):
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
        return LocalPool(config.jobs, config.cores)
    try:
        leaf: Any = importlib.import_module("qdeploy.study.ray_pool")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        raise MissingDependencyError(
            "`ray` needs ray, which is not installed", command="pip install 'qdeploy[ray]'"
        ) from error
    pool: Pool = leaf.RayPool(config.jobs, config.cores, gpu=config.device in ("auto", "cuda"))
    return pool
