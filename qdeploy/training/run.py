"""One run: the loop over its epochs, its returns to earlier weights, its log and its checkpoints."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qdeploy.core.cautions import LEAST_IMAGES, cautions
from qdeploy.core.errors import InputError, VerdictError
from qdeploy.core.files import write_rendered
from qdeploy.core.machine import peak_memory_bytes
from qdeploy.core.run_folder import RunRecord, RunResults
from qdeploy.data.dataset import Dataset, Split
from qdeploy.models.torch_threads import torch_threads
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
from qdeploy.training.threads import ThreadRange, Threads, thread_range

STATISTICS_BATCHES = 100
"""Batches from which the norms of SWA weights are recomputed."""
LOOK_STEPS = 16
"""Steps between two looks at the losses and the clock where a look waits for a GPU or for other processes."""
RESCUES = 3
"""Returns to the best weights after a loss that is not finite, before the run is given up."""
LAST_EPOCHS = 10
"""Epochs whose mean is the time of an epoch (thesis, 5.4)."""
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
        cores: int | None = None,
    ) -> None:
        self.config, self.dataset, self.learner, self.batches = config, dataset, learner, batches
        self.folder, self.record, self.progress, self.world = folder, record, progress, learner.world
        self.constants = constants_of(config)
        self.schedule = build_schedule(config, batches.steps)
        self.val = dataset.splits["test" if config.all_images else "val"]
        self.best = Best(len(self.val), within_error=within_error(config), latest=config.all_images)
        self.swa = StochasticWeightAverage()
        self.tally = Tally(self.world)
        self.rows: list[Row] = []
        self.events: EventLog | None = None
        self.epoch = self.step = self.rescues = 0
        self.seconds = {"train": 0.0, "data": 0.0, "all": 0.0}
        alone_on_cpu = self.world.device.type == "cpu" and self.world.size == 1
        self._look_every = 1 if alone_on_cpu else LOOK_STEPS
        self.happened: list[str] = []
        """What happened in the present epoch besides its steps, in a word each."""
        self.threads = Threads(self._allowed(cores), self._rehearse, torch.set_num_threads, self._threads_changed)
        self._losses: list[Tensor] = []
        self._said_one_answer = False
        self._kept: Weights | None = None
        self._saved_at, self._saving_s = time.monotonic(), 0.0

    def go(self) -> TrainResult:
        """Train from the present position to the end."""
        with stop_requests() as stop, torch_threads(self.threads.count):
            while self.epoch < self.config.epochs:
                if self.step == 0:
                    self._start_epoch()
                self._train(stop)
                self._finish_epoch()
            self._average_late_epochs()
            return self.close(interrupted=False)

    def _allowed(self, cores: int | None) -> ThreadRange:
        world = self.world
        return thread_range(
            self.config, device=world.device.type, processes=world.size, default=torch.get_num_threads(), cores=cores
        )

    def _threads_changed(self, text: str) -> None:
        self.happened.append("threads")
        self.progress.note(text)

    def _rehearse(self, limit_s: float) -> None:
        self.learner.rehearse(self.batches.batch(self.epoch, self.step, 0.5), limit_s)

    def _start_epoch(self) -> None:
        """Go back to the best weights where the recipe says so (paper, III.C; the epochs are ours)."""
        epoch = self.epoch - self.config.continued
        at_swa = self.config.swa and epoch == self.constants.swa_start
        if self.best.weights and self.config.reloads and (at_swa or epoch in self.constants.reload_epochs):
            self.learner.load(self.best.weights)
            self.happened.append("reload")
            self.progress.note(f"epoch {self.epoch + 1} starts from the best weights (epoch {self.best.epoch})")

    def _train(self, stop: StopRequest) -> None:
        first = (self.epoch - self.config.continued) * self.batches.steps
        steps = (self.config.epochs - self.config.continued) * self.batches.steps
        while self.step < self.batches.steps:
            begin = time.perf_counter()
            self.threads.before_step(steps - first - self.step)
            self.seconds["all"] += time.perf_counter() - begin
            begin = time.perf_counter()
            settings = self.schedule.settings(first + self.step)
            batch = self.batches.batch(self.epoch, self.step, settings.confidence)
            ready = time.perf_counter()
            self._losses.append(self.learner.step(batch, settings, self.tally))
            self.step += 1
            if self.step % self._look_every == 0 or self.step == self.batches.steps:
                self._check_losses()
            took = time.perf_counter() - begin
            self.threads.step_took(took)
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
        self.happened.append("rescue")
        self.tally = Tally(self.world)
        self.progress.note(f"the loss is not finite at {where}; back to the weights of epoch {self.best.epoch}")

    def _finish_epoch(self) -> None:
        begin = time.perf_counter()
        learner, val = self.learner, self.val
        self.world.share_buffers(learner.model, learner.average.twin)
        lr = self.schedule.settings(self._steps_after() - 1).lr
        train, self.tally = self.tally.score(), Tally(self.world)
        raw, *features = learner.evaluate_features(val)
        averaged = learner.evaluate(learner.average.twin, val)
        self._say_if_one_answer(raw)
        self.schedule.finish_epoch(self.epoch - self.config.continued, raw.top1)
        if self.schedule.event:
            self.happened.append(self.schedule.event)
        better = (averaged.top1, -averaged.loss) > (raw.top1, -raw.loss)
        if self.config.ema_decay > 0 if self.config.all_images else better:
            self.best.offer(learner.average.twin, averaged, self.epoch + 1, "average")
        else:
            self.best.offer(learner.model, raw, self.epoch + 1, "raw")
        if self.config.guard and not self.config.all_images and raw.top1 < 0.5 * self.best.highest:
            learner.load(self.best.weights)
            self.happened.append("return")
            self.progress.note(f"validation fell to {raw.top1:.2f} %; back to the weights of epoch {self.best.epoch}")
        if self.config.swa and self.epoch - self.config.continued >= self.constants.swa_start:
            self.swa.update(learner.model)
        self.seconds["all"] += time.perf_counter() - begin
        self._log(lr, train, raw, averaged, *features)
        self.epoch, self.step = self.epoch + 1, 0
        if self._due(0.0) or self.epoch == self.config.epochs:
            self.save()

    def _say_if_one_answer(self, score: Score) -> None:
        """Say it once that all validation images get one label, after the second epoch or later."""
        if score.answers == 1 and self.epoch and len(self.val) >= LEAST_IMAGES and not self._said_one_answer:
            self._said_one_answer = True
            self.progress.note(
                f"after epoch {self.epoch + 1} all {len(self.val)} validation images get one label: the model tells no "
                "classes apart yet; if that stays, lower lr or train longer"
            )

    def _steps_after(self) -> int:
        """Return the schedule's steps up to the end of the present epoch."""
        return (self.epoch + 1 - self.config.continued) * self.batches.steps

    def _log(
        self,
        lr: float,
        train: Score,
        raw: Score,
        averaged: Score,
        feature_mean: float | None,
        feature_std: float | None,
    ) -> None:
        """Add the epoch's row. As in the paper's log, the rate is the one used, the rest stands after the update."""
        after = asdict(self.schedule.settings(self._steps_after()))
        self.learner.follow(after["confidence"])
        seconds = {k: v - sum(row[f"{k}_s"] for row in self.rows) for k, v in self.seconds.items()}
        clamp = self.constants.reward_clamp
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
            "drop_path": self.learner.model.drop_path,
            **{f"{k}_s": v for k, v in seconds.items()},
            "reward": max(-clamp, min(clamp, raw.top1 - (self.rows[-1]["val_top1"] if self.rows else 0.0))),
            "feature_mean": feature_mean,
            "feature_std": feature_std,
            "images_per_s": self.batches.images_per_epoch / max(1e-9, seconds["train"]),
            "threads": self.threads.count,
            "events": " ".join(self.happened),
        }
        self.happened = []
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
            "threads": self.threads.count,
            "happened": self.happened,
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

    def extend(self, weights: Weights, rows: list[Row]) -> None:
        """Put the run behind epochs that it has had: their rows, and the best weights of them."""
        results = self.record.results
        assert results is not None, "a run that has weights has results"
        self.rows, self.epoch = rows, self.config.continued
        self.learner.load(weights)
        self.learner.average.twin.load_state_dict(weights)
        highest = max([results.val_top1, *(row["val_top1"] for row in rows), *(row["ema_val_top1"] for row in rows)])
        state = {"epoch": results.best_epoch, "source": results.best_weights, "highest": highest}
        self.best.restore(weights, {**state, "top1": results.val_top1, "top5": results.val_top5})
        self.seconds = {name: sum(row[f"{name}_s"] for row in rows) for name in self.seconds}

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
        self.threads.restore(values["threads"])
        self.happened = list(values["happened"])
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
        score = self.learner.evaluate(model, self.val)
        kept = self.best.offer(model, score, self.config.epochs, "swa")
        epochs = "1 epoch" if self.swa.count == 1 else f"{self.swa.count} epochs"
        self.progress.note(f"SWA of {epochs}: {score.top1:.2f} %{'' if kept else ', not kept'}")

    def close(self, interrupted: bool) -> TrainResult:
        """Leave the folder usable: weights, record, curves; checkpoints stay while there is something to resume."""
        if not self.best.weights:  # interrupted within the first epoch
            self.best.offer(self.learner.model, Score(loss=0.0, top1=0.0, top5=0.0), 0, "raw")
        test_top1 = None
        if not interrupted:
            model = self.learner.average.twin
            model.load_state_dict(self.best.weights)
            confusion = self.learner.confusion(model, self.dataset.splits["test"], len(self.dataset.classes))
            test_top1 = 100 * confusion.trace().item() / max(1, int(confusion.sum()))
            for text in cautions(self.dataset.classes, confusion.tolist(), split="test"):
                self.progress.note(f"note: {text}")
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
            epoch_s=_mean_of_last([row["train_s"] for row in self.rows]),
            data_share=self.seconds["data"] / max(1e-9, self.seconds["train"]),
            peak_memory_bytes=_peak_memory(self.world.device),
            chance=_largest_share(self.dataset.splits["test"]),
        )


def within_error(config: TrainConfig) -> bool:
    """Tell whether the latest epoch within one standard error of the best is kept, not the best."""
    return config.schedule == "cosine" if config.best_epoch == "auto" else config.best_epoch == "within-error"


def _mean_of_last(seconds: list[float]) -> float | None:
    last = seconds[-LAST_EPOCHS:]
    return sum(last) / len(last) if last else None


def _largest_share(split: Split) -> float:
    return 100 * float(np.bincount(split.labels).max()) / len(split)


def _peak_memory(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()
