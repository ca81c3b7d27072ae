"""A model in training: its steps, its averaged twin, its evaluation, and its state in a checkpoint.

Array names: N images, B batch, S height and width, C colours, K classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from qdeploy.core.errors import InputError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.dataset import Split
from qdeploy.models.classifier import Classifier, Paths
from qdeploy.training.augment import normalise
from qdeploy.training.averaging import ExponentialAverage, Weights
from qdeploy.training.batches import Batch, normalisation, to_device
from qdeploy.training.checkpoint import nested, under
from qdeploy.training.device import Precision
from qdeploy.training.distributed import World
from qdeploy.training.loss import total_loss
from qdeploy.training.recipes import TrainConfig
from qdeploy.training.rehearsal import rehearse
from qdeploy.training.schedule import Settings

EVAL_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Score:
    """Loss and accuracies in percent over some images."""

    loss: float
    top1: float
    top5: float
    answers: int = 0
    """How many different labels were answered: 1, or 2 for more; 0 where that was not counted."""


class Tally:
    """Running sums that give a score: of losses, right answers, answers right within five, and images."""

    def __init__(self, world: World) -> None:
        self.world = world
        dtype = torch.float32 if world.device.type == "mps" else torch.float64
        self.sums = torch.zeros(4, dtype=dtype, device=world.device)
        self.answers: set[int] = set()
        """Labels that this process' images were answered with, of an evaluation."""

    @torch.no_grad()
    def add(self, loss: Tensor, logits_BK: Tensor, labels_B: Tensor) -> None:
        """Count a batch; nothing is waited for."""
        best = logits_BK.topk(min(5, logits_BK.shape[1]), dim=1).indices == labels_B[:, None]
        count = torch.full_like(loss, len(labels_B), dtype=self.sums.dtype)
        self.sums += torch.stack([loss * count, best[:, 0].sum(), best.sum(), count])

    def score(self) -> Score:
        """Return the score over the images of all processes."""
        loss, top1, top5, count = self.world.sum(self.sums.clone()).tolist()
        count = max(1.0, count)
        return Score(loss=loss / count, top1=100 * top1 / count, top5=100 * top5 / count)


class FeatureTally:
    """Mean and standard deviation of all values that a part of a model gives out."""

    def __init__(self, world: World) -> None:
        self.world = world
        dtype = torch.float32 if world.device.type == "mps" else torch.float64
        self.sums = torch.zeros(3, dtype=dtype, device=world.device)

    def add(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        """Count a batch of features; the signature is that of a forward hook."""
        values = output.float()
        self.sums += torch.stack([values.new_tensor(values.numel()), values.sum(), values.square().sum()]).to(
            self.sums.dtype
        )

    def mean_and_std(self) -> tuple[float | None, float | None]:
        """Return both over the images of all processes; None if nothing was counted."""
        count, total, squares = self.world.sum(self.sums.clone()).tolist()
        if not count:
            return None, None
        mean = total / count
        return mean, math.sqrt(max(0.0, squares / count - mean * mean))


class _AllPaths(nn.Module):
    """``forward_paths`` as a module's forward: what DistributedDataParallel and torch.compile can wrap."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, labels: Tensor | None) -> Paths:
        return self.model.forward_paths(image, labels)


class Learner:
    """Owns the model, its exponential moving average, the optimizer and the loss scaler."""

    def __init__(
        self, model: Classifier, config: TrainConfig, precision: Precision, preprocessing: Preprocessing, world: World
    ) -> None:
        self.config, self.precision, self.world = config, precision, world
        self.model = model.to(world.device).to(memory_format=torch.channels_last)
        self.average = ExponentialAverage(self.model)
        self.network: nn.Module = _AllPaths(self.model)
        if world.size > 1:
            # the layout of a 1x1 kernel is ambiguous, the memory is the same
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            ids = [world.device.index] if world.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.network, device_ids=ids)
        if config.compile:
            self.network.compile()
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, config.weight_decay), lr=config.lr)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=precision.needs_scaler)
        self.mean, self.std = normalisation(preprocessing, world.device)

    def step(self, batch: Batch, settings: Settings, tally: Tally) -> Tensor:
        """Train on one batch and give its loss, without waiting for the device."""
        for group in self.optimizer.param_groups:
            group["lr"], group["betas"] = settings.lr, (settings.momentum, 0.999)
        self.follow(settings.confidence)
        self.model.train()
        with self.precision.autocast():
            paths = self.network(batch.image, batch.labels if self.config.confidence_from_label else None)
        loss = total_loss(paths, batch.target, self.config, settings, batch.teacher)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if self.config.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update(self.model, settings.ema)
        tally.add(loss.detach(), paths.logits.detach(), batch.labels)
        return loss.detach()

    def follow(self, confidence: float) -> None:
        """Set the drop paths' rate for a controller's confidence in [0, 1], if the recipe lets them follow it."""
        if self.config.dynamic_drop_path:
            self.model.set_confidence(confidence)

    def rehearse(self, batch: Batch, limit_s: float) -> None:
        """Compute the forward pass of a step on a copy, and forget it: weights, statistics and random states stay.

        It takes a third of a step, and is given up between two layers once it has taken ``limit_s`` seconds.
        """
        labels = batch.labels if self.config.confidence_from_label else None

        def forward(twin: Classifier) -> None:
            with self.precision.autocast():
                twin.forward_paths(batch.image, labels)

        rehearse(self.model, forward, limit_s)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, split: Split) -> Score:
        """Score a model on a split in the precision of training; each process takes a share of the images."""
        tally = Tally(self.world)
        with self.precision.autocast():
            for logits_BK, labels_B in self._answers(model, split):
                tally.add(F.cross_entropy(logits_BK, labels_B), logits_BK, labels_B)
                if len(tally.answers) < 2:
                    tally.answers.update(logits_BK.argmax(1).unique()[:2].tolist())
        return replace(tally.score(), answers=min(2, len(tally.answers)))

    def evaluate_features(self, split: Split) -> tuple[Score, float | None, float | None]:
        """Score the model on a split; also the mean and the standard deviation of the features it classifies."""
        tally, module = FeatureTally(self.world), self.model.feature_module
        hook = module.register_forward_hook(tally.add) if module is not None else None
        try:
            score = self.evaluate(self.model, split)
        finally:
            if hook is not None:
                hook.remove()
        return score, *tally.mean_and_std()

    @torch.inference_mode()
    def confusion(self, model: nn.Module, split: Split, classes: int) -> Tensor:
        """Count the answers to a whole split, in float32: whole numbers ``[K, K]``, a row for each true label."""
        counts = torch.zeros(classes * classes, dtype=Tally(self.world).sums.dtype, device=self.world.device)
        for logits_BK, labels_B in self._answers(model, split):
            pairs = labels_B * classes + logits_BK.argmax(1)
            counts += torch.bincount(pairs, minlength=classes * classes)
        return self.world.sum(counts).reshape(classes, classes).round().long().cpu()

    @torch.inference_mode()
    def probabilities(self, model: nn.Module, split: Split) -> Tensor:
        """Return a model's probabilities of a split's images, float32 ``[N, K]``, of one process alone."""
        return torch.cat([logits_BK.softmax(dim=1).cpu() for logits_BK, _ in self._answers(model, split)])

    def load(self, weights: Weights) -> None:
        """Replace the model's weights; optimizer and average are left alone."""
        self.model.load_state_dict(weights)

    def recover(self, weights: Weights) -> None:
        """Replace the weights of model and average and forget the optimizer's moments, which may be NaN or infinite."""
        self.model.load_state_dict(weights)
        self.average.twin.load_state_dict(weights)
        self.optimizer.state.clear()

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor a checkpoint must keep."""
        moments = {
            f"{i}.{name}": value
            for i, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        return {
            **nested("model", self.model.state_dict()),
            **nested("average", self.average.twin.state_dict()),
            **nested("optimizer", moments),
        }

    def restore(self, tensors: dict[str, Tensor], scaler: dict[str, Any]) -> None:
        """Take a checkpoint's tensors and the scaler's values back.

        Raises:
            InputError: If they belong to another model, e.g. one with another number of classes.
        """
        try:
            self.model.load_state_dict(under("model", tensors))
            self.average.twin.load_state_dict(under("average", tensors))
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise InputError(f"the checkpoint belongs to another model: {reason}") from error
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in under("optimizer", tensors).items():
            index, _, kind = name.partition(".")
            state.setdefault(int(index), {})[kind] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.scaler.load_state_dict(scaler)

    def _answers(self, model: nn.Module, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        mine = np.arange(self.world.rank, len(split), self.world.size)
        was_training = model.training
        model.eval()
        for index in filter(len, np.array_split(mine, max(1, -(-len(mine) // EVAL_BATCH)))):
            pixels = to_device(torch.from_numpy(split.pixels[index]), self.world.device)
            logits = model(normalise(pixels, self.mean, self.std)).float()
            yield logits, to_device(torch.from_numpy(split.labels[index]), self.world.device)
        model.train(was_training)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Decay matrices only: norms, biases and scales are left alone."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
