"""The export of a module that did not come from a run."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save as save_tensors
from torch import nn

from qdeploy.core.errors import InputError
from qdeploy.core.files import sha256_of
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset
from qdeploy.export.config import ExportConfig, Note
from qdeploy.export.finish import record_without_run
from qdeploy.export.pipeline import export_source, silent
from qdeploy.export.sources.run import TorchSource
from qdeploy.export.verdict import ExportReport
from qdeploy.models.registry import count


def export_module(
    module: nn.Module,
    labels: Sequence[str],
    preprocessing: Preprocessing,
    data: str | Dataset,
    out: Path,
    *,
    name: str = "module",
    config: ExportConfig | None = None,
    note: Note = silent,
) -> ExportReport:
    """Export your own trained module, with the same checks, INT8 and card as a run.

    Args:
        module: Takes normalised float32 ``[B, 3, S, S]`` and gives logits ``[B, K]``; it is not changed.
        labels: The K class names in the order of the logits: those of the data, in its order.
        preprocessing: How an image becomes the module's input.
        data: A data set as ``qdeploy train`` takes it, or a loaded one: ranges come from its training split, parity
            from validation, accuracy from test.
        out: The export's folder.
        name: Of the model, in the card.
        config: What to make.
        note: Called with a line after each step.

    Raises:
        InputError: If module, labels and data do not fit together.
        VerdictError: If a step's parity is missed.
    """
    dataset = load_dataset(data, preprocessing) if isinstance(data, str) else data
    if dataset.preprocessing != preprocessing:
        raise InputError("the data was loaded with another preprocessing than the module's; load it with that one")
    if tuple(labels) != dataset.classes:
        raise InputError(f"the labels are {', '.join(labels)}, the data's classes {', '.join(dataset.classes)}")
    model = copy.deepcopy(module).cpu().eval()
    _require_logits(model, len(labels), preprocessing.size)
    weights = save_tensors({k: v.clone() for k, v in model.state_dict().items()})
    record = record_without_run(name, "module", *count(model, preprocessing.size), dataset)
    source = TorchSource(model, sha256_of(weights), preprocessing)
    return export_source(source, record, lambda: dataset, config, out, note)


def _require_logits(model: nn.Module, classes: int, size: int) -> None:
    if next(model.parameters(), None) is None:
        raise InputError("the module has no parameters: there is nothing to export")
    try:
        with torch.inference_mode():
            logits = model(torch.zeros(2, 3, size, size))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the module cannot take [2, 3, {size}, {size}] images: {reason}") from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, classes):
        found = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InputError(f"the module must give logits [2, {classes}] for 2 images, found {found}")
