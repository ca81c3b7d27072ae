"""A model in torch as a source: folded for inference, then traced."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from qdeploy.core.machine import compute_threads
from qdeploy.core.metrics import Floats
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.progress import Note
from qdeploy.data.dataset import Dataset
from qdeploy.export.int8.finetune import FinetuneConfig, finetune
from qdeploy.export.sources.source import Reference, Source
from qdeploy.export.sources.trace import trace, trace_once
from qdeploy.models.folding import deploy
from qdeploy.models.torch_threads import torch_threads
from qdeploy.runtime.session import SMALL_MACS

TORCH_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class TorchSource(Source):
    """A model in torch, on the CPU and in its evaluation mode."""

    module: nn.Module
    rules: Preprocessing
    known: bool = False
    """Whether the card's ``model`` and the weights tell all of it; then its graph is kept for the next export."""

    @cached_property
    def graph(self) -> onnx.ModelProto:
        """The folded model, traced."""
        if not self.known:
            return trace(self._deployed, self.rules.size)
        return trace_once(self._deployed, self.rules.size, f"{self.model} {self.sha256} {self.rules}")

    def references(self, pixels_NSSC: NDArray[np.uint8]) -> list[Reference]:
        """Return the logits of the model as it was trained, and folded."""
        threads = 1 if self.model.macs < SMALL_MACS else compute_threads()
        images = torch.from_numpy(pixels_NSSC)
        mean, std = torch.tensor(self.rules.mean), torch.tensor(self.rules.std)

        def as_trained(pixels: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.module(((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous())
            return logits

        at_once = max(1, compute_threads() // threads) if self.known else 1  # a user's module may keep state
        trained = _logits(as_trained, images, threads, at_once)
        folded = _logits(lambda p: self._deployed(p)[0], images, threads, at_once)
        return [
            Reference(form="trained", output="logits", values=trained),
            Reference(form="folded", output="logits", values=folded),
        ]

    def finetuned(self, dataset: Dataset, epochs: int, note: Note) -> onnx.ModelProto:
        """Fine-tune the inference form for INT8, and trace it."""
        return trace(finetune(self._deployed, dataset, FinetuneConfig(epochs=epochs), note), self.rules.size)

    @cached_property
    def _deployed(self) -> nn.Module:
        return deploy(self.module, self.rules.mean, self.rules.std)


def _logits(model: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, threads: int, at_once: int) -> Floats:
    """Return a model's logits ``[N, K]`` of images ``[N, S, S, 3]``, so many batches at once.

    Beside a busy neighbour two threads of torch take up to thirty times as long as one, two batches twice as long.
    """

    def run(batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():  # not inference_mode: a module may need gradients inside
            return model(batch).detach()

    batches = images.split(TORCH_BATCH)
    with torch_threads(threads):
        if at_once == 1:
            return np.asarray(torch.cat([run(b) for b in batches]).numpy(), np.float32)
        with ThreadPoolExecutor(at_once) as pool:
            return np.asarray(torch.cat(list(pool.map(run, batches))).numpy(), np.float32)
