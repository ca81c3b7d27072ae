"""Training batches in a seeded order, augmented and mixed on the device.

Every choice is a function of seed, epoch, step and process alone. So nothing of it has to be saved: a run that
goes on from a step draws what the uninterrupted run would have drawn.

Array names: B batch, S height and width, C colours, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.dataset import Dataset, Split
from qdeploy.training.augment import augment, crop_and_mirror, flip_and_shift, normalise, strength_of
from qdeploy.training.distributed import World
from qdeploy.training.mixing import choose_mix, mix, mix_probabilities
from qdeploy.training.recipes import TrainConfig
from qdeploy.training.schedule import constants_of


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one process trains one step with."""

    image: Tensor
    """Normalised float32 ``[B, 3, S, S]``, channels-last in memory."""
    target: Tensor
    """Probabilities ``[B, K]``: one-hot, or mixed by MixUp or CutMix."""
    labels: Tensor
    """``[B]``; of a mixed image, the label of its first part."""
    teacher: Tensor | None = None
    """The teachers' softened probabilities ``[B, K]``, mixed as the images are; None without a teacher."""


class Batches:
    """The training split as batches; the last incomplete one of an epoch is left out."""

    def __init__(
        self,
        split: Split,
        classes: int,
        preprocessing: Preprocessing,
        config: TrainConfig,
        world: World,
        answers: Tensor | None = None,
    ) -> None:
        """Take the images; ``answers`` are the teachers' probabilities of each, ``[N, K]``."""
        self.answers = answers
        self.pixels, self.labels = torch.from_numpy(split.pixels), torch.from_numpy(split.labels)
        self.classes, self.config, self.world = classes, config, world
        self.mean, self.std = normalisation(preprocessing, world.device)
        self.steps = max(1, len(split) // config.batch_size)
        self.constants = constants_of(config)
        self._order: tuple[int, Tensor] | None = None

    @property
    def images_per_epoch(self) -> int:
        """Images that all processes together see in an epoch."""
        return self.steps * min(self.config.batch_size, len(self.labels))

    def batch(self, epoch: int, step: int, confidence: float) -> Batch:
        """Return this process' share of a batch.

        Args:
            epoch: From 0; decides the order and the augmentation's phase.
            step: Within the epoch, from 0.
            confidence: Confidence of the controller, 0 to 1; the higher, the more often batches are mixed.
        """
        size = self.config.batch_size
        index = self._order_of(epoch)[step * size : (step + 1) * size][self.world.rank :: self.world.size]
        generator = _generator(self.config.seed, epoch, step, self.world.rank)
        labels = to_device(self.labels[index], self.world.device)
        image = self._augmented(to_device(self.pixels[index], self.world.device), epoch, generator)
        target = F.one_hot(labels, self.classes).float()
        chances = mix_probabilities(
            self._phase(epoch) == 2, confidence, mixup=self.config.mixup, cutmix=self.config.cutmix
        )
        if self.answers is not None:
            target = torch.cat([target, to_device(self.answers[index], self.world.device)], dim=1)
        image, target = mix(image, target, choose_mix(chances, generator), generator)
        own, *taught = target.split(self.classes, dim=1)
        return Batch(image=image, target=own, labels=labels, teacher=taught[0] if taught else None)

    def _phase(self, epoch: int) -> int:
        return self.constants.phase(epoch - self.config.continued)

    def _order_of(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            generator = _generator(self.config.seed, epoch)
            self._order = epoch, torch.randperm(len(self.labels), generator=generator)
        return self._order[1]

    def _augmented(self, pixels_BSSC: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
        kind = self.config.augmentation
        if kind == "none":
            return normalise(pixels_BSSC, self.mean, self.std)
        if kind == "shift":
            moved = flip_and_shift(pixels_BSSC, flip=True, max_shift=self.config.shift, generator=generator)
            return normalise(moved, self.mean, self.std)
        if kind == "crop":
            side = max(1, round(self.config.crop * pixels_BSSC.shape[1]))
            return normalise(crop_and_mirror(pixels_BSSC, side, generator, self.config.pad), self.mean, self.std)
        strength = strength_of(kind, self._phase(epoch), randaugment=self.config.randaugment)
        image = augment(pixels_BSSC, strength, generator)
        return (image - self.mean[:, None, None]) / self.std[:, None, None]


def training_split(dataset: Dataset, config: TrainConfig) -> Split:
    """Return the images that are trained on: those of train, or those of train and val."""
    train, val = dataset.splits["train"], dataset.splits["val"]
    return joined_splits(train, val) if config.all_images else train


def joined_splits(first: Split, *others: Split) -> Split:
    """Return several splits as one; of those that lie one after the other in one table nothing is copied."""
    for other in others:
        shape = (len(first) + len(other), *first.pixels.shape[1:])
        if first.pixels.ctypes.data + first.pixels.nbytes == other.pixels.ctypes.data:
            pixels = np.lib.stride_tricks.as_strided(first.pixels, shape, first.pixels.strides)
        else:
            pixels = np.concatenate([first.pixels, other.pixels])
        first = Split(
            pixels=pixels,
            labels=np.concatenate([first.labels, other.labels]),
            hashes=(*first.hashes, *other.hashes),
            keys=(*first.keys, *other.keys),
        )
    return first


def normalisation(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the three colours, each ``[3]``, on a device."""
    return torch.tensor(preprocessing.mean, device=device), torch.tensor(preprocessing.std, device=device)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Move a batch; to a CUDA device from pinned memory, so that the copy overlaps with computation."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def _generator(*numbers: int) -> torch.Generator:
    """Make a generator whose seed mixes some small numbers."""
    seed = 0
    for number in numbers:
        seed = (seed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(seed)
