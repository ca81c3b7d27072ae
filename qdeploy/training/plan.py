"""The dry run of a training: configuration, model size and the memory that it would take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from qdeploy.data.catalog import count_classes
from qdeploy.models.classifier import Classifier
from qdeploy.models.registry import create_model, summarise
from qdeploy.training.device import Precision, choose_precision
from qdeploy.training.recipes import TrainConfig

FLOAT_BYTES = 4
COPIES = 5
"""Weights, gradients, AdamW's two moments and the moving average, each in float32."""
PROBE = (2, 4)
"""Batch sizes whose difference gives the memory of an image."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What ``qdeploy train --dry-run`` shows."""

    config: dict[str, Any]
    model: str
    classes: int
    params: int
    macs: int
    """Multiply-accumulates of one image."""
    input_size: int
    device: str
    amp: str
    state_bytes: int
    """Bytes of weights, gradients, optimizer and moving average."""
    activation_bytes: int
    """Bytes of the tensors kept for the backward pass of a whole batch, with the weights' low-precision copies; of
    several processes each keeps its share."""

    @property
    def memory_bytes(self) -> int:
        """Predicted peak on the device; the allocator and the libraries' workspaces come on top."""
        return self.state_bytes + self.activation_bytes


def plan(config: TrainConfig, num_classes: int | None = None) -> Plan:
    """Work out what a configuration needs; no image is read and nothing trained.

    Activations are counted, not estimated: two small forward passes are run on the CPU and every tensor that autograd
    keeps is measured; what grows with the batch is scaled to the batch.

    Args:
        config: The run.
        num_classes: Number of the data's classes; by default they are counted.

    Raises:
        InputError: If the model, the data or the device is not there.
    """
    num_classes = num_classes or count_classes(config.data)
    summary = summarise(config.model, num_classes, config.input_size)
    side = summary.input_size if config.augmentation != "crop" else round(config.crop * summary.input_size)
    precision = choose_precision(config.device, config.amp)
    model = create_model(config.model, num_classes, config.input_size)
    kept = [_kept_bytes(model, precision, count, side) for count in PROBE]
    per_image = (kept[1] - kept[0]) / (PROBE[1] - PROBE[0])
    fixed = max(0.0, kept[0] - PROBE[0] * per_image)
    return Plan(
        config=config.to_dict(),
        model=config.model,
        classes=num_classes,
        params=summary.params,
        macs=summary.macs,
        input_size=summary.input_size,
        device=str(precision.device),
        amp=precision.amp,
        state_bytes=COPIES * FLOAT_BYTES * summary.params,
        activation_bytes=int(fixed + per_image * config.batch_size),
    )


def _kept_bytes(model: Classifier, precision: Precision, count: int, size: int) -> int:
    """Return the bytes that a forward pass of so many images keeps for the backward pass, parameters left out."""
    model.train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    image = torch.rand(count, 3, size, size).to(memory_format=torch.channels_last)
    dtype = torch.bfloat16 if precision.autocast_dtype else None  # as large as fp16, and the CPU has it
    with saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        loss = nn.functional.cross_entropy(model(image).float(), torch.zeros(count, dtype=torch.long))
    total = sum(kept.values())
    del loss
    return total
