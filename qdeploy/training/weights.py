"""Weights that a training begins with: those of another run, or of a safetensors file; the head is kept if it fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from qdeploy.core.errors import InputError
from qdeploy.core.run_folder import RECORD, read_record, read_run
from qdeploy.data.dataset import Dataset
from qdeploy.models.classifier import Classifier
from qdeploy.models.registry import create_model
from qdeploy.training.averaging import Weights
from qdeploy.training.recipes import TrainConfig

OF_THE_MODEL = ("model", "model_fields", "input_size", "interpolation", "normalisation")
"""Fields of a run's configuration that its weights belong to."""


def run_of(path: Path) -> Path | None:
    """Return the run that a folder or the file of its weights is; None for a file from elsewhere.

    Raises:
        InputError: If there is nothing.
    """
    if not path.exists():
        raise InputError(f"there are no weights in {path}: it does not exist")
    folder = path if path.is_dir() else path.parent
    return folder if path.is_dir() or (folder / RECORD).is_file() else None


def fields_of(weights: str) -> dict[str, Any]:
    """Return the fields of a configuration that a run's weights belong to; none for a file from elsewhere.

    Raises:
        InputError: If there is no such run.
    """
    run = run_of(Path(weights))
    if run is None:
        return {}
    config = read_record(run).config
    return {name: config[name] for name in OF_THE_MODEL if name in config}


def load_weights(model: Classifier, config: TrainConfig, dataset: Dataset) -> str:
    """Give a model the weights that its configuration names.

    The head stays as it was initialised where the other model knew other classes, or the same in another order. Which
    tensors belong to it shows in a model of one more class.

    Returns:
        What was taken, in a line.

    Raises:
        InputError: If they cannot be read, or are of another model.
    """
    path = Path(config.weights)
    tensors, labels = _read(path)
    own = model.state_dict()
    prefixed = {f"network.{name}": t for name, t in tensors.items()}
    if not own.keys() & tensors.keys() and own.keys() & prefixed.keys():
        tensors = prefixed  # as the library saves its own networks
    head = _head(config, len(dataset.classes), own)
    fits = all(name in tensors and tensors[name].shape == own[name].shape for name in head)
    keeps = fits and labels in (None, tuple(dataset.classes))
    wanted = own.keys() if keeps else own.keys() - head
    for name in sorted(wanted):
        if name not in tensors:
            raise InputError(f"the weights in {path} are of another model than {config.model}: '{name}' is not there")
        if tensors[name].shape != own[name].shape:
            raise InputError(
                f"the weights in {path} are of another model than {config.model}: '{name}' is "
                f"{_shape(tensors[name])} there and {_shape(own[name])} here"
            )
    model.load_state_dict({name: tensors[name] if name in wanted else t for name, t in own.items()})
    if keeps:
        known = "" if labels else "; which classes it was trained on is not known"
        return f"starting from the weights of {path}, head included{known}"
    why = "it knows other classes" if labels else "it has another number of classes"
    return f"starting from the weights of {path}; the head starts anew, since {why} ({len(head)} tensors)"


def _read(path: Path) -> tuple[Weights, tuple[str, ...] | None]:
    run = run_of(path)
    if run is not None:
        record, data = read_run(run)
        return load_tensors(data), record.labels
    if path.suffix != ".safetensors":
        raise InputError(
            f"{path} holds no weights to train from",
            fix="give a run's folder or a .safetensors file; an export has none",
        )
    try:
        return load_tensors(path.read_bytes()), None
    except (OSError, SafetensorError) as error:
        raise InputError(f"the weights in {path} cannot be read: {error}") from error


def _head(config: TrainConfig, classes: int, own: Weights) -> set[str]:
    """Return the names of the tensors whose shapes follow the number of classes."""
    with torch.random.fork_rng(devices=[]):
        other = create_model(config.model, classes + 1, config.input_size, config.model_changes).state_dict()
    return {name for name, tensor in own.items() if other[name].shape != tensor.shape}


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
