"""Real training steps on random images."""

from __future__ import annotations

import gc
import math
from dataclasses import replace
from functools import cache
from time import perf_counter, perf_counter_ns

import numpy as np
import torch

from campaign.results import Row
from campaign.sizes import Size
from qdeploy.core.machine import peak_memory_bytes
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.dataset import Split
from qdeploy.models.registry import PUBLISHED_CLASSES, create_model, summarise
from qdeploy.training import TrainConfig
from qdeploy.training.batches import Batch, Batches
from qdeploy.training.device import choose_precision
from qdeploy.training.distributed import World
from qdeploy.training.learner import Learner, Tally
from qdeploy.training.schedule import build_schedule


class Stepper:
    """Training steps as a run makes them: batches drawn, augmented and mixed, the controller's settings, the average.

    The images and their 200 labels are random: what a step costs does not depend on them.
    """

    def __init__(self, config: TrainConfig, size: Size, *, channels_last: bool = True) -> None:
        precision = choose_precision(config.device, config.amp)
        self.config, self.channels_last, self.device = config, channels_last, precision.device
        self.before_bytes = self._forget_others()
        torch.manual_seed(config.seed)
        model = create_model(config.model, PUBLISHED_CLASSES)
        preprocessing, world = Preprocessing(size=model.config.input_size), World(device=precision.device)
        self.learner = Learner(model, config, precision, preprocessing, world)
        if not channels_last:
            for network in (self.learner.model, self.learner.average.twin):
                network.to(memory_format=torch.contiguous_format)
        split = random_split(size.images, preprocessing.size)
        self.batches = Batches(split, PUBLISHED_CLASSES, preprocessing, config, world)
        self.schedule = build_schedule(config, self.batches.steps)
        self.tally = Tally(world)
        self.phases = {"phase_1": 0, "phase_2": config.epochs - 1}
        self.done, self.drawing_s = 0, 0.0

    def step(self, epoch: int, fixed: Batch | None = None, confidence: float | None = None) -> torch.Tensor:
        """Make one step; with a fixed batch nothing is drawn."""
        index = self.done % self.batches.steps
        settings = self.schedule.settings(index)
        if confidence is not None:
            settings = replace(settings, confidence=confidence)
        begin = perf_counter()
        batch = fixed or self.draw(epoch, index)
        self.drawing_s += perf_counter() - begin
        self.done += 1
        return self.learner.step(batch, settings, self.tally)

    def draw(self, epoch: int, index: int) -> Batch:
        batch = self.batches.batch(epoch, index, self.schedule.settings(index).confidence)
        return batch if self.channels_last else replace(batch, image=batch.image.contiguous())

    def warm_up(self, steps: int) -> float:
        """Make the first steps, in both phases of the augmentation; gives the seconds of the very first."""
        first = self.group_ms(0, 1) / 1000
        for epoch in self.phases.values():
            self.group_ms(epoch, steps)
        return first

    def group_ms(self, epoch: int, steps: int, fixed: Batch | None = None) -> float:
        """Time some steps, from an idle device to an idle device: milliseconds per step.

        Raises:
            RuntimeError: If the loss is not finite.
        """
        self._wait()
        begin = perf_counter_ns()
        for _ in range(steps):
            loss = self.step(epoch, fixed)
        self._wait()
        passed = (perf_counter_ns() - begin) / 1e6 / steps
        if not math.isfinite(loss.item()):
            raise RuntimeError("the loss is not finite")
        return passed

    def memory(self) -> Row:
        if self.device.type != "cuda":
            return {"peak_process_bytes": peak_memory_bytes()}
        return {
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
            "allocated_before_bytes": self.before_bytes,
        }

    def facts(self) -> Row:
        config = self.config
        return {
            "model": config.model,
            "recipe": config.recipe,
            "batch_size": config.batch_size,
            "amp": str(self.learner.precision.autocast_dtype or "off"),
            "params": summarise(config.model, PUBLISHED_CLASSES).params,
        }

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _forget_others(self) -> int:
        gc.collect()
        torch.compiler.reset()
        if self.device.type != "cuda":
            return 0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())


@cache
def random_split(count: int, size: int) -> Split:
    generator = np.random.default_rng(0)
    pixels = np.frombuffer(generator.bytes(count * size * size * 3), np.uint8).reshape(count, size, size, 3).copy()
    return Split(pixels=pixels, labels=generator.integers(0, PUBLISHED_CLASSES, count), hashes=())
