"""A module that did not come from a run, as a source."""

from __future__ import annotations

import copy
from datetime import datetime, timezone

import torch
from safetensors.torch import save as save_tensors
from torch import nn

from qdeploy.core.card import ModelInfo
from qdeploy.core.errors import InputError
from qdeploy.core.files import sha256_of
from qdeploy.core.git import git_commit
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.export.sources.torch_model import TorchSource
from qdeploy.models.registry import count


def module_source(module: nn.Module, classes: int, rules: Preprocessing, name: str) -> TorchSource:
    """Return a copy of a module as a source.

    Raises:
        InputError: If it does not take normalised images ``[B, 3, S, S]``, or does not give logits ``[B, K]``.
    """
    model = copy.deepcopy(module).cpu().eval()
    _require_logits(model, classes, rules.size)
    weights = save_tensors({k: v.clone() for k, v in model.state_dict().items()})
    params, macs = count(model, rules.size)
    return TorchSource(
        model=ModelInfo(
            name=name, family="module", params=params, macs=macs, input_size=rules.size, num_classes=classes
        ),
        training={},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        git=git_commit(),
        sha256=sha256_of(weights),
        module=model,
        rules=rules,
    )


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
