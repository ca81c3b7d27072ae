"""The loop that a recipe must beat: what anyone writes in an hour, with nothing of qdeploy's training in it.

AdamW 1e-3, weight decay 0.05, a 3 % warm-up and one cosine, batch 64, flips and shifts up to 4 pixels, gradient norm 1;
the last weights are the result.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.dataset import Split

BATCH, SHIFT, LR, WARMUP = 64, 4, 1e-3, 0.03


def train_plainly(model: nn.Module, split: Split, preprocessing: Preprocessing, epochs: int) -> None:
    """Train a model, which gives logits, on a split's images."""
    images, labels = normalised(split, preprocessing), torch.from_numpy(np.asarray(split.labels, np.int64))
    steps = epochs * (len(labels) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step, steps))
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(BATCH):
            if len(chosen) < BATCH:
                continue
            loss = nn.functional.cross_entropy(model(moved(images[chosen])), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()


def share(step: int, steps: int) -> float:
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def normalised(split: Split, preprocessing: Preprocessing) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(split.pixels)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return (pixels - mean) / std


def moved(batch: Tensor) -> Tensor:
    """Mirror half of the images and move each by up to SHIFT pixels."""
    size = batch.shape[-1]
    batch = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch.flip(-1), batch)
    padded = nn.functional.pad(batch, (SHIFT,) * 4)
    corners = torch.randint(0, 2 * SHIFT + 1, (len(batch), 2)).tolist()
    return torch.stack([image[:, y : y + size, x : x + size] for image, (y, x) in zip(padded, corners, strict=True)])
