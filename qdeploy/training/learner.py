"""A model in training: its steps, its averaged twin and its evaluation.

Array names: N images, B batch, S height and width, C colours, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qdeploy.core.metrics import topk_percent
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.dataset import Split
from qdeploy.models.qonstraint import Paths, Qonstraint
from qdeploy.training.augment import flip_and_shift, normalise
from qdeploy.training.device import Precision
from qdeploy.training.recipes import TrainConfig
from qdeploy.training.schedule import Schedule, Settings

EVAL_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Score:
    """Loss and accuracies in percent over some images."""

    loss: float
    top1: float
    top5: float


class Learner:
    """Owns the model, its exponential moving average, the optimizer and the random choices."""

    def __init__(
        self, model: Qonstraint, config: TrainConfig, precision: Precision, preprocessing: Preprocessing
    ) -> None:
        self.config, self.precision = config, precision
        device = precision.device
        self.model = model.to(device).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(_parameter_groups(self.model, config.weight_decay), lr=config.lr)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.needs_scaler)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.mean = torch.tensor(preprocessing.mean, device=device)
        self.std = torch.tensor(preprocessing.std, device=device)
        self.step_count = 0

    def train_epoch(
        self, pixels: Tensor, labels: Tensor, schedule: Schedule, tick: Callable[[int, int], None]
    ) -> Score:
        """Pass once over ``[N, S, S, 3]`` uint8 images; the last incomplete batch is left out."""
        self.model.train()
        size = self.config.batch_size
        steps = steps_per_epoch(len(labels), size)
        order = torch.randperm(len(labels), generator=self.generator)
        losses, logits, targets = [], [], []
        for i in range(steps):
            index = order[i * size : (i + 1) * size].to(labels.device)
            loss, out = self._step(pixels[index], labels[index], schedule.settings(self.step_count))
            losses.append(loss)
            logits.append(out)
            targets.append(labels[index])
            self.step_count += 1
            tick(i + 1, steps)
        return _score(torch.stack(losses).mean(), torch.cat(logits), torch.cat(targets))

    def _step(self, pixels: Tensor, labels: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"], group["betas"] = settings.lr, (settings.momentum, 0.999)
        self.model.set_confidence(settings.confidence)
        moved = flip_and_shift(pixels, flip=self.config.flip, max_shift=self.config.shift, generator=self.generator)
        image = normalise(moved, self.mean, self.std)
        with self.precision.autocast():
            paths = self.model.forward_paths(image, labels if self.config.confidence_from_label else None)
        logits = paths.logits.float()
        loss = self._loss(paths, logits, labels, settings)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._update_average(settings.ema)
        return loss.detach(), logits.detach()

    def _loss(self, paths: Paths, logits: Tensor, labels: Tensor, settings: Settings) -> Tensor:
        loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
        if paths.auxiliary is not None:
            loss = loss + settings.auxiliary_weight * F.cross_entropy(paths.auxiliary.float(), labels)
        if paths.transformer is not None and self.config.deep_supervision:
            loss = loss + self.config.deep_supervision * F.cross_entropy(paths.transformer.float(), labels)
        return loss

    @torch.no_grad()
    def _update_average(self, decay: float) -> None:
        pairs = zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True)
        averages: list[Tensor] = []
        news: list[Tensor] = []
        for mine, new in pairs:
            if mine.is_floating_point():
                averages.append(mine)
                news.append(new)
            else:  # counters of BatchNorm
                mine.copy_(new)
        torch._foreach_lerp_(averages, news, 1.0 - decay)

    def evaluate(self, model: nn.Module, split_pixels: Tensor, labels: Tensor) -> Score:
        """Score a model on ``[N, S, S, 3]`` uint8 images, in the precision of training."""
        with self.precision.autocast():
            logits = predict(model, split_pixels, self.mean, self.std)
        return _score(F.cross_entropy(logits, labels), logits, labels)


def predict(model: nn.Module, pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Give the float32 logits ``[N, K]`` of uint8 images ``[N, S, S, 3]``, in evaluation mode."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        parts = [model(normalise(part, mean, std)).float() for part in pixels.split(EVAL_BATCH)]
    model.train(was_training)
    return torch.cat(parts)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Give the number of whole batches in an epoch, at least one."""
    return max(1, count // batch_size)


def tensors(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """Put a split's pixels and labels onto the device."""
    return torch.from_numpy(split.pixels).to(device), torch.from_numpy(split.labels).to(device)


def _score(loss: Tensor, logits: Tensor, labels: Tensor) -> Score:
    values = logits.cpu().numpy()
    truth = labels.cpu().numpy().astype(np.int64)
    return Score(loss=loss.item(), top1=topk_percent(values, truth, 1), top5=topk_percent(values, truth, 5))


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Decay matrices only: norms, biases and scales are left alone."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
