"""One run: the loop over its epochs, its returns to earlier weights, its log and its checkpoints."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdeploy.core.errors import InputError, VerdictError
from qdeploy.core.files import write_rendered
from qdeploy.core.machine import peak_memory_bytes
from qdeploy.core.run_folder import RunRecord, RunResults
from qdeploy.data.dataset import Dataset
from qdeploy.training.averaging import StochasticWeightAverage, Weights, refresh_statistics
from qdeploy.training.batches import Batches
from qdeploy.training.best import Best
from qdeploy.training.checkpoint import Checkpoint, nested, remove_checkpoints, save_checkpoint, under
from qdeploy.training.events import EventLog
from qdeploy.training.learner import Learner, Score, Tally
from qdeploy.training.progress import Progress, Row
from qdeploy.training.recipes import TrainConfig
from qdeploy.training.run_files import TrainResult, save_weights, write_log
from qdeploy.training.schedule import build_schedule, constants_of
from qdeploy.training.stopping import StopRequest, stop_requests

STATISTICS_BATCHES = 100
"""Batches from which the norms of SWA weights are recomputed."""
LOOK_STEPS = 16
"""Steps between two looks at the losses and the clock where a look waits for a GPU or for other processes."""
RESCUES = 3
"""Returns to the best weights after a loss that is not finite, before the run is given up."""
SAVING_SHARE = 0.05
"""Largest share of the time that checkpoints may take."""


class Run:
    """The state of a run between two steps, and what moves it."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        learner: Learner,
        batches: Batches,
        folder: Path,
        record: RunRecord,
        progress: Progress,
    ) -> None:
        self.config, self.dataset, self.learner, self.batches = config, dataset, learner, batches
        self.folder, self.record, self.progress, self.world = folder, record, progress, learner.world
        self.constants = constants_of(config)
        self.schedule = build_schedule(config, batches.steps)
        self.best = Best(len(dataset.splits["val"]), within_error=config.schedule == "cosine")
        self.swa = StochasticWeightAverage()
        self.tally = Tally(self.world)
        self.rows: list[Row] = []
        self.events: EventLog | None = None
        self.epoch = self.step = self.rescues = 0
        self.seconds = {"train": 0.0, "data": 0.0, "all": 0.0}
        alone_on_cpu = self.world.device.type == "cpu" and self.world.size == 1
        self._look_every = 1 if alone_on_cpu else LOOK_STEPS
        self._losses: list[Tensor] = []
        self._kept: Weights | None = None
        self._saved_at, self._saving_s = time.monotonic(), 0.0

    def go(self) -> TrainResult:
        """Train from the present position to the end."""
        with stop_requests() as stop:
            while self.epoch < self.config.epochs:
                if self.step == 0:
                    self._start_epoch()
                self._train(stop)
                self._finish_epoch()
        self._average_late_epochs()
        return self.close(interrupted=False)

    def _start_epoch(self) -> None:
        """Go back to the best weights where the recipe says so (paper, III.C; the epochs are ours)."""
        at_swa = self.config.swa and self.epoch == self.constants.swa_start
        if self.best.weights and self.config.reloads and (at_swa or self.epoch in self.constants.reload_epochs):
            self.learner.load(self.best.weights)
            self.progress.note(f"epoch {self.epoch + 1} starts from the best weights (epoch {self.best.epoch})")

    def _train(self, stop: StopRequest) -> None:
        first = self.epoch * self.batches.steps
        while self.step < self.batches.steps:
            begin = time.perf_counter()
            settings = self.schedule.settings(first + self.step)
            batch = self.batches.batch(self.epoch, self.step, settings.confidence)
            ready = time.perf_counter()
            self._losses.append(self.learner.step(batch, settings, self.tally))
            self.step += 1
            if self.step % self._look_every == 0 or self.step == self.batches.steps:
                self._check_losses()
            took = time.perf_counter() - begin
            for name, seconds in (("data", ready - begin), ("train", took), ("all", took)):
                self.seconds[name] += seconds
            self.progress.batch(self.epoch, self.step, self.batches.steps)
            if stop.requested:
                if self.world.size == 1:  # several processes may stop at different steps
                    self.save()
                raise KeyboardInterrupt
            if self.step % self._look_every == 0 and self._due(self.config.checkpoint_seconds):
                self.save()

    def _check_losses(self) -> None:
        """Stop, or go back to the best weights, if a loss since the last look is not finite."""
        if not self._losses:
            return
        bad = (~torch.stack(self._losses).isfinite()).double()
        first = self.step - len(self._losses) + 1
        self._losses.clear()
        if not self.world.sum(bad).sum().item():
            return
        where = f"step {first + int(bad.argmax())} of epoch {self.epoch + 1}"
        if not (self.config.guard and self.best.weights and self.rescues < RESCUES):
            raise VerdictError(f"training diverged: the loss is not finite at {where}", fix="lower `lr`")
        self.rescues += 1
        self.learner.recover(self.best.weights)
        self.tally = Tally(self.world)
        self.progress.note(f"the loss is not finite at {where}; back to the weights of epoch {self.best.epoch}")

    def _finish_epoch(self) -> None:
        begin = time.perf_counter()
        learner, val = self.learner, self.dataset.splits["val"]
        self.world.share_buffers(learner.model, learner.average.twin)
        lr = self.schedule.settings((self.epoch + 1) * self.batches.steps - 1).lr
        train, self.tally = self.tally.score(), Tally(self.world)
        raw, averaged = learner.evaluate(learner.model, val), learner.evaluate(learner.average.twin, val)
        self.schedule.finish_epoch(self.epoch, raw.top1)
        if (averaged.top1, -averaged.loss) > (raw.top1, -raw.loss):
            self.best.offer(learner.average.twin, averaged, self.epoch + 1, "average")
        else:
            self.best.offer(learner.model, raw, self.epoch + 1, "raw")
        if self.config.guard and raw.top1 < 0.5 * self.best.highest:
            learner.load(self.best.weights)
            self.progress.note(f"validation fell to {raw.top1:.2f} %; back to the weights of epoch {self.best.epoch}")
        if self.config.swa and self.epoch >= self.constants.swa_start:
            self.swa.update(learner.model)
        self.seconds["all"] += time.perf_counter() - begin
        self._log(lr, train, raw, averaged)
        self.epoch, self.step = self.epoch + 1, 0
        if self._due(0.0) or self.epoch == self.config.epochs:
            self.save()

    def _log(self, lr: float, train: Score, raw: Score, averaged: Score) -> None:
        """Add the epoch's row. As in the paper's log, the rate is the one used, the rest stands after the update."""
        after = asdict(self.schedule.settings((self.epoch + 1) * self.batches.steps))
        seconds = {k: v - sum(row[f"{k}_s"] for row in self.rows) for k, v in self.seconds.items()}
        row: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "lr": lr,
            **{k: after[k] for k in ("confidence", "momentum", "ema")},
            "train_top1": train.top1,
            "train_top5": train.top5,
            "val_top1": raw.top1,
            "val_top5": raw.top5,
            "ema_val_top1": averaged.top1,
            "train_loss": train.loss,
            "val_loss": raw.loss,
            **{k: after[k] for k in ("label_smoothing", "auxiliary_weight")},
            **{f"{k}_s": v for k, v in seconds.items()},
            "images_per_s": self.batches.images_per_epoch / max(1e-9, seconds["train"]),
        }
        self.rows.append(row)
        if self.world.writes:
            write_log(self.folder, self.rows)
        if self.config.tensorboard and self.world.writes:
            self.events = self.events or EventLog(self.folder, self.epoch)
            self.events.epoch(row)
        self.progress.epoch(row)

    def _due(self, seconds: float) -> bool:
        """Tell whether so long has passed since the last checkpoint, and long enough to keep their share small."""
        passed = time.monotonic() - self._saved_at
        mine = torch.tensor(float(passed > max(seconds, self._saving_s / SAVING_SHARE)), device=self.world.device)
        return bool(self.world.sum(mine).item() > 0)

    def save(self) -> None:
        """Write a checkpoint of this moment, then the best weights so far."""
        self._check_losses()
        begin = time.monotonic()
        checkpoint = self._checkpoint()
        if self.world.writes:
            save_checkpoint(self.folder, checkpoint)
            if self.best.weights:
                self._keep(interrupted=True)
        self._saved_at = time.monotonic()
        self._saving_s = self._saved_at - begin

    def _checkpoint(self) -> Checkpoint:
        tensors = {
            **self.learner.tensors(),
            **nested("swa", self.swa.weights),
            **nested("best", self.best.weights),
            **nested("random", self._random_states()),
        }
        values = {
            "config": self.config.to_dict(),
            "rows": self.rows,
            "schedule": self.schedule.state(),
            "scaler": self.learner.scaler.state_dict(),
            "best": self.best.state(),
            "swa_count": self.swa.count,
            "rescues": self.rescues,
            "tally": self.world.sum(self.tally.sums.clone()).tolist(),
            "seconds": self.seconds,
        }
        return Checkpoint(epoch=self.epoch, step=self.step, tensors=tensors, values=values)

    def _random_states(self) -> dict[str, Tensor]:
        """Return the state of every process' generators; they drive dropout and drop path."""
        device = self.world.device
        states = {f"cpu.{i}": s for i, s in enumerate(self.world.gather(torch.get_rng_state().to(device)))}
        if device.type == "cuda":
            own = torch.cuda.get_rng_state(device).to(device)
            states |= {f"cuda.{i}": s for i, s in enumerate(self.world.gather(own))}
        return states

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put the run where a checkpoint was taken.

        Raises:
            InputError: If it is of another run.
        """
        tensors, values = checkpoint.tensors, checkpoint.values
        if values["config"] != self.config.to_dict():
            raise InputError(f"the checkpoint in {self.folder} is of another run: its recipe is not that of run.json")
        self.epoch, self.step = checkpoint.epoch, checkpoint.step
        self.learner.restore(tensors, values["scaler"])
        self.schedule.restore(values["schedule"])
        self.best.restore(under("best", tensors), values["best"])
        self.swa.weights, self.swa.count = under("swa", tensors), values["swa_count"]
        self.rows, self.seconds, self.rescues = values["rows"], values["seconds"], values["rescues"]
        if self.world.writes:  # the sums of all processes go on in one
            self.tally.sums.copy_(torch.tensor(values["tally"]))
        random = under("random", tensors)
        torch.set_rng_state(random[f"cpu.{self.world.rank}"])
        if self.world.device.type == "cuda":
            torch.cuda.set_rng_state(random[f"cuda.{self.world.rank}"], self.world.device)
        if self.rows and self.world.writes:
            write_log(self.folder, self.rows)

    def _average_late_epochs(self) -> None:
        """Offer the SWA weights, their norms' statistics recomputed on augmented training images."""
        if not self.swa.count:
            return
        model, last = self.learner.average.twin, self.config.epochs - 1
        model.load_state_dict(self.swa.weights)
        images = (self.batches.batch(last, i, 0.5).image for i in range(min(self.batches.steps, STATISTICS_BATCHES)))
        refresh_statistics(model, images)
        self.world.average_buffers(model)
        score = self.learner.evaluate(model, self.dataset.splits["val"])
        kept = self.best.offer(model, score, self.config.epochs, "swa")
        self.progress.note(f"SWA of {self.swa.count} epochs: {score.top1:.2f} %{'' if kept else ', not kept'}")

    def close(self, interrupted: bool) -> TrainResult:
        """Leave the folder usable: weights, record, curves; checkpoints stay while there is something to resume."""
        if not self.best.weights:  # interrupted within the first epoch
            self.best.offer(self.learner.model, Score(loss=0.0, top1=0.0, top5=0.0), 0, "raw")
        test_top1 = None
        if not interrupted:
            model = self.learner.average.twin
            model.load_state_dict(self.best.weights)
            test_top1 = self.learner.accuracy(model, self.dataset.splits["test"])
        results = self._results(test_top1)
        if self.world.writes:
            self._keep(interrupted, test_top1)  # from here on a run is complete
            if self.rows:
                write_rendered(self.folder / "curves.png", self._curves, self.progress.note)
            if not interrupted:
                remove_checkpoints(self.folder)
        return TrainResult(
            run=str(self.folder), model=self.config.model, params=self.record.model.params, **vars(results)
        )

    def _curves(self) -> bytes:
        from qdeploy.training.curves import draw_curves  # Matplotlib may be missing or broken: the run is written

        return draw_curves(self.rows, f"{self.config.model} on {self.dataset.name}")

    def _keep(self, interrupted: bool, test_top1: float | None = None) -> None:
        self.record = replace(self.record, interrupted=interrupted, results=self._results(test_top1))
        if self.best.weights is self._kept:
            self.record.save(self.folder)
        else:
            self.record = save_weights(self.folder, self.record, self.best.weights)
            self._kept = self.best.weights

    def _results(self, test_top1: float | None) -> RunResults:
        images = self.batches.images_per_epoch * (self.epoch + self.step / self.batches.steps)
        return RunResults(
            epochs=len(self.rows),
            best_epoch=self.best.epoch,
            best_weights=self.best.source,
            val_top1=self.best.top1,
            val_top5=self.best.top5,
            test_top1=test_top1,
            seconds=self.seconds["all"],
            images_per_s=images / max(1e-9, self.seconds["train"]),
            data_share=self.seconds["data"] / max(1e-9, self.seconds["train"]),
            peak_memory_bytes=_peak_memory(self.world.device),
        )


def _peak_memory(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()
