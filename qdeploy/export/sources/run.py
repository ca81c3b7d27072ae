"""A trained run as a source, and its data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import nn

from qdeploy.core.errors import InputError
from qdeploy.core.files import sha256_of
from qdeploy.core.image_formats import formats_of_run
from qdeploy.core.run_folder import RunRecord, read_run
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset
from qdeploy.export.sources.torch_model import TorchSource
from qdeploy.models.own import FAMILY as OWN
from qdeploy.models.registry import model_from_record, require_as_large


def run_source(run: Path) -> tuple[TorchSource, Callable[[], Dataset]]:
    """Return a run's model, and what reads its data.

    Raises:
        InputError: If the run cannot be used; from the reading, if its data have changed.
    """
    record, weights = read_run(run)
    source = TorchSource(
        model=record.model,
        training={k: v for k, v in record.config.items() if k != "data"},  # data may be a local path
        created=record.created,
        git=record.git,
        sha256=sha256_of(weights),
        module=_module(record, weights, run),
        rules=record.preprocessing,
        known=record.model.family != OWN,  # a user's code may have changed since
    )
    return source, lambda: _dataset(record)


def _module(record: RunRecord, weights: bytes, run: Path) -> nn.Module:
    try:
        require_as_large(record.model.family, record.model.config, len(weights))
        model = model_from_record(record.model.family, record.model.config)
        tensors = load_tensors(weights)
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError, InputError) as error:
        raise InputError(f"{run} cannot be read as a model: {str(error).splitlines()[0]}; train again") from error
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise InputError(f"the weights '{broken[0]}' of {run} hold values that are not finite; train again")
    return model.eval()


def _dataset(record: RunRecord) -> Dataset:
    trained = record.dataset
    dataset = load_dataset(trained.source, record.preprocessing.taking(formats_of_run(record.config)))
    if dataset.sha256 != trained.sha256:
        raise InputError(
            f"the data set {trained.source} has changed since training (found {dataset.sha256[:12]}, trained on "
            f"{trained.sha256[:12]}); restore it or train again"
        )
    return dataset
