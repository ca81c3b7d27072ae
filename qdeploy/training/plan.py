"""The dry run of a training: configuration, model size and the memory that it would take."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from qdeploy.core.progress import silent
from qdeploy.data.catalog import READERS, count_classes, find_place
from qdeploy.data.download import NotHereError, without_downloads
from qdeploy.data.splits import expected_counts
from qdeploy.models.classifier import Classifier
from qdeploy.models.registry import create_model, summarise
from qdeploy.models.torch_threads import torch_threads
from qdeploy.training.device import Precision, choose_precision
from qdeploy.training.recipes import TrainConfig
from qdeploy.training.rehearsal import rehearse
from qdeploy.training.start import require_buildable
from qdeploy.training.threads import LEAST_STEPS, Threads, fixed_threads, thread_range

FLOAT_BYTES = 4
COPIES = 5
"""Weights, gradients, AdamW's two moments and the moving average, each in float32."""
OVERHEAD = 1.55
"""Largest ratio of the memory that the paper reports (IV.B, on a P100) to what is counted for the same run: allocator,
workspaces, context and temporaries come on top. The smallest is 1.1."""
DEVICES = {"the paper's 9.2 GB": 9.2e9, "a P100's 16 GB": 16e9}
FORWARD_SHARE = 1 / 3
"""Time of evaluating an image, as a share of that of training on it."""
MANY_MACS = 300_000_000
"""Multiply-accumulates of an image from which a step is timed with few images."""
STEPS, STEPS_S = 5, 3.0
"""Steps that are timed after the first, and the seconds after which no further one is."""
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
    images: dict[str, int]
    """Images of each split, if every one is usable."""
    download: str | None
    """What would be downloaded first; None if the data are here."""
    steps_per_epoch: int
    epoch_s: float | None
    """Predicted seconds of an epoch with its two evaluations, from some timed steps on the threads that training would
    choose now; None on a GPU."""

    @property
    def memory_bytes(self) -> int:
        """Predicted peak on the device; the allocator and the libraries' workspaces come on top."""
        return self.state_bytes + self.activation_bytes

    def fits(self, limit_bytes: float) -> Literal["yes", "perhaps", "no"]:
        """Tell whether the run fits into a device's memory, given what comes on top on others."""
        if self.memory_bytes > limit_bytes:
            return "no"
        return "yes" if self.memory_bytes * OVERHEAD <= limit_bytes else "perhaps"


def plan(config: TrainConfig, num_classes: int | None = None) -> Plan:
    """Work out what a configuration needs; no image is decoded, nothing downloaded and nothing trained.

    Activations are counted, not estimated: two small forward passes are run on the CPU and every tensor that autograd
    keeps is measured; what grows with the batch is scaled to the batch.

    Args:
        config: The run.
        num_classes: Number of the data's classes; by default they are counted.

    Raises:
        InputError: If the model, the data or the device is not there.
    """
    require_buildable(config)
    num_classes = num_classes or count_classes(config.data)
    summary = summarise(config.model, num_classes, config.input_size, config.model_changes)
    side = summary.input_size if config.augmentation != "crop" else round(config.crop * summary.input_size)
    precision = choose_precision(config.device, config.amp)
    model = create_model(config.model, num_classes, config.input_size, config.model_changes)
    kept = [_kept_bytes(model, precision, count, side) for count in PROBE]
    per_image = (kept[1] - kept[0]) / (PROBE[1] - PROBE[0])
    fixed = max(0.0, kept[0] - PROBE[0] * per_image)
    images, download = _images(config.data)
    trained_on = images["train"] + (images["val"] if config.all_images else 0)
    steps = max(1, trained_on // config.batch_size)
    epoch_s = None
    if precision.device.type == "cpu":
        count = min(config.batch_size, 64 if summary.macs < MANY_MACS else 4)
        image_s = _image_s(model, precision, config, count, side)
        looked_at = 2 * images["test" if config.all_images else "val"]
        epoch_s = image_s * (steps * config.batch_size + FORWARD_SHARE * looked_at)
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
        images=images,
        download=download,
        steps_per_epoch=steps,
        epoch_s=epoch_s,
    )


def _images(data: str) -> tuple[dict[str, int], str | None]:
    """Return the images of each split, and what would be downloaded first, if the data are not here."""
    try:
        with without_downloads():
            return expected_counts(find_place(data).read()), None
    except NotHereError as error:
        return READERS[data].images, error.url  # only what is published is downloaded


def _image_s(model: Classifier, precision: Precision, config: TrainConfig, count: int, size: int) -> float:
    """Return the seconds of a training step for each of so many images, with the threads that training chooses."""
    image = torch.rand(count, 3, size, size).to(memory_format=torch.channels_last)

    def forward(twin: Classifier) -> Tensor:
        with precision.autocast():
            answer: Tensor = twin(image)
        return answer.float()

    config = replace(config, threads=fixed_threads(config, None))
    allowed = thread_range(config, device="cpu", processes=1, default=torch.get_num_threads(), cores=None)
    with torch_threads(allowed.first):
        choice = Threads(allowed, partial(rehearse, model, forward), torch.set_num_threads, silent)
        choice.before_step(LEAST_STEPS)
        steps: list[float] = []
        while len(steps) <= STEPS and sum(steps) < STEPS_S:
            begin = time.perf_counter()
            nn.functional.cross_entropy(forward(model), torch.zeros(count, dtype=torch.long)).backward()
            steps.append(time.perf_counter() - begin)
    return statistics.median(steps[1:] or steps) / count  # the first one warms up


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
