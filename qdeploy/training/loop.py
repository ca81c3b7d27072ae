"""A training run from configuration to folder."""

from __future__ import annotations

import csv
import io
import itertools
import math
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save as save_tensors
from torch import nn

from qdeploy.core.errors import InputError, VerdictError
from qdeploy.core.files import require_writable, sha256_of, write_bytes, write_json
from qdeploy.core.lineage import git_commit
from qdeploy.core.machine import environment, peak_memory_bytes
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.run_folder import RECORD, RUNS, WEIGHTS
from qdeploy.data.catalog import load_dataset, location_of
from qdeploy.data.dataset import Dataset
from qdeploy.models.qonstraint import Qonstraint
from qdeploy.models.registry import create_model, model_config, summarise
from qdeploy.training.curves import draw_curves
from qdeploy.training.device import choose_precision
from qdeploy.training.learner import Learner, Score, predict, steps_per_epoch, tensors
from qdeploy.training.recipes import TrainConfig
from qdeploy.training.schedule import build_schedule

Row = dict[str, Any]


class Reporter(Protocol):
    """Whoever shows a run's progress."""

    def reading(self, done: int, total: int) -> None:
        """So many images of the data set are decoded."""

    def started(self, record: Row, folder: Path) -> None:
        """Training begins; the record describes it."""

    def batch(self, epoch: int, done: int, total: int) -> None:
        """So many batches of an epoch are done."""

    def epoch(self, row: Row) -> None:
        """An epoch is done; the row is its line of ``log.csv``."""


class Silent:
    """A reporter that shows nothing."""

    def reading(self, done: int, total: int) -> None:
        """Ignore."""

    def started(self, record: Row, folder: Path) -> None:
        """Ignore."""

    def batch(self, epoch: int, done: int, total: int) -> None:
        """Ignore."""

    def epoch(self, row: Row) -> None:
        """Ignore."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run came to. Accuracies are in percent; ``best_epoch`` counts from 1."""

    run: str
    model: str
    params: int
    epochs: int
    best_epoch: int
    val_top1: float
    val_top5: float
    test_top1: float | None
    """Of the saved weights on the test split, in float32; None if the run was interrupted."""
    seconds: float
    images_per_s: float
    """Training images per second, without reading and evaluation."""
    peak_memory_bytes: int


def train(config: TrainConfig, out: Path | None = None, reporter: Reporter | None = None) -> TrainResult:
    """Train a model and leave a run's folder: weights, record, log and curves.

    The best epoch by validation top-1 is kept, of the raw or of the averaged weights, whichever is better; under a
    cosine the latest that is within one standard error of the best. On Ctrl-C the best weights so far are in the
    folder, and the run can be exported.

    Args:
        config: Everything that decides the run.
        out: The run's folder; the default is a new one below ``./runs``.
        reporter: Shown the progress.

    Raises:
        InputError: If the model, the data, an option or the folder cannot be used; nothing is written then.
        VerdictError: If the loss is no number any more; the best weights so far stay in the folder.
        KeyboardInterrupt: After the folder has been made usable.
    """
    reporter = reporter or Silent()
    precision = choose_precision(config.device, config.amp)
    size = model_config(config.model, num_classes=2).input_size
    folder = _free_folder(config, out)
    dataset = load_dataset(config.data, Preprocessing(size=size), reporter.reading)
    torch.manual_seed(config.seed)
    model = create_model(config.model, len(dataset.classes))
    learner = Learner(model, config, precision, dataset.preprocessing)
    run = _Run(config, dataset, learner, folder)
    folder.mkdir(parents=True, exist_ok=True)
    reporter.started(run.record, folder)
    try:
        run.train(reporter)
    except KeyboardInterrupt:
        run.close(interrupted=True)
        raise
    except VerdictError:
        if not run.rows:  # nothing worth keeping
            folder.rmdir()
        raise
    return run.close(interrupted=False)


def _free_folder(config: TrainConfig, out: Path | None) -> Path:
    if out is None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        name = f"{config.model}-{Path(location_of(config.data)).name}-{stamp}"
        names = (name if i == 1 else f"{name}-{i}" for i in itertools.count(1))
        out = next(RUNS / n for n in names if not (RUNS / n).exists())
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} already holds {'a run' if (out / RECORD).exists() else 'files'}; give another --out")
    require_writable(out)
    return out


class _Run:
    """One run's bookkeeping: rows, best weights, record."""

    def __init__(self, config: TrainConfig, dataset: Dataset, learner: Learner, folder: Path) -> None:
        self.config, self.dataset, self.learner, self.folder = config, dataset, learner, folder
        self.rows: list[Row] = []
        self.best_top1 = 0.0
        self.best_state: dict[str, torch.Tensor] = {}
        self.best_row: Row = {}
        self.train_seconds = 0.0
        self.start = time.perf_counter()
        self.record = self._describe()

    def train(self, reporter: Reporter) -> None:
        device = self.learner.precision.device
        pixels, labels = tensors(self.dataset.splits["train"], device)
        val = tensors(self.dataset.splits["val"], device)
        steps = steps_per_epoch(len(labels), self.config.batch_size)
        schedule = build_schedule(self.config, steps)
        for epoch in range(self.config.epochs):
            used = schedule.settings(min(self.learner.step_count + steps // 2, self.config.epochs * steps - 1))
            begin = time.perf_counter()
            score = self.learner.train_epoch(
                pixels,
                labels,
                schedule,
                lambda done, total, e=epoch: reporter.batch(e, done, total),  # type: ignore[misc]
            )
            seconds = time.perf_counter() - begin
            self.train_seconds += seconds
            if not math.isfinite(score.loss):
                raise VerdictError(f"training diverged in epoch {epoch + 1}: the loss is {score.loss}; lower --lr")
            raw = self.learner.evaluate(self.learner.model, *val)
            averaged = self.learner.evaluate(self.learner.average, *val)
            schedule.finish_epoch(epoch, raw.top1)
            row = self._row(epoch, asdict(used), score, raw, averaged, seconds, steps)
            self.rows.append(row)
            self._keep_best(row, raw, averaged)
            write_log(self.folder, self.rows)
            reporter.epoch(row)

    def _row(self, epoch: int, used: Row, train: Score, raw: Score, averaged: Score, seconds: float, steps: int) -> Row:
        images = steps * min(self.config.batch_size, len(self.dataset.splits["train"]))
        return {
            "epoch": epoch + 1,
            **used,
            "train_loss": train.loss,
            "train_top1": train.top1,
            "train_top5": train.top5,
            "val_loss": raw.loss,
            "val_top1": raw.top1,
            "val_top5": raw.top5,
            "ema_val_top1": averaged.top1,
            "seconds": seconds,
            "images_per_s": images / seconds,
        }

    def _keep_best(self, row: Row, raw: Score, averaged: Score) -> None:
        """Keep this epoch's better weights if their validation top-1 is the best so far, or as good.

        As good, under a cosine, means within one standard error of the best: on a small validation split the
        highest of many noisy readings is a lucky one, and the later weights are the better ones. The controller's
        late restarts make no later epoch better: there it means equal.
        """
        score, model = max(
            ((raw, self.learner.model), (averaged, self.learner.average)), key=lambda c: (c[0].top1, -c[0].loss)
        )
        self.best_top1 = max(self.best_top1, score.top1)
        share = self.best_top1 / 100
        error = 100 * math.sqrt(share * (1 - share) / len(self.dataset.splits["val"]))
        if score.top1 >= self.best_top1 - (error if self.config.schedule == "cosine" else 0.0):
            self.best_state = {k: v.detach().clone() for k, v in model.state_dict().items()}
            self.best_row = {"epoch": row["epoch"], "top1": score.top1, "top5": score.top5}
            self._save(interrupted=True)

    def close(self, interrupted: bool) -> TrainResult:
        if not self.best_state:  # interrupted within the first epoch
            self.best_state = self.learner.model.state_dict()
            self.best_row = {"epoch": 0, "top1": 0.0, "top5": 0.0}
        test_top1 = None
        if not interrupted:
            test_top1 = self._test_top1()
        result = self._save(interrupted=interrupted, test_top1=test_top1)
        if self.rows:
            draw_curves(self.folder / "curves.png", self.rows, f"{self.config.model} on {self.dataset.name}")
        return result

    def _test_top1(self) -> float:
        model: nn.Module = self.learner.average
        model.load_state_dict(self.best_state)
        pixels, labels = tensors(self.dataset.splits["test"], self.learner.precision.device)
        logits = predict(model, pixels, self.learner.mean, self.learner.std)
        return float((logits.argmax(1) == labels).float().mean() * 100)

    def _save(self, interrupted: bool, test_top1: float | None = None) -> TrainResult:
        data = save_tensors({k: v.detach().cpu().contiguous() for k, v in self.best_state.items()})
        result = TrainResult(
            run=str(self.folder),
            model=self.config.model,
            params=self.record["model"]["params"],
            epochs=len(self.rows),
            best_epoch=self.best_row["epoch"],
            val_top1=self.best_row["top1"],
            val_top5=self.best_row["top5"],
            test_top1=test_top1,
            seconds=time.perf_counter() - self.start,
            images_per_s=sum(r["images_per_s"] * r["seconds"] for r in self.rows) / max(1e-9, self.train_seconds),
            peak_memory_bytes=_peak_memory(self.learner.precision.device),
        )
        results = {k: v for k, v in asdict(result).items() if k not in ("run", "model", "params")}
        self.record.update(weights_sha256=sha256_of(data), interrupted=interrupted, results=results)
        write_bytes(self.folder / WEIGHTS, data)
        write_json(self.folder / RECORD, self.record)
        return result

    def _describe(self) -> Row:
        config, dataset = self.config, self.dataset
        model = self.learner.model
        assert isinstance(model, Qonstraint)
        summary = summarise(config.model, len(dataset.classes))
        return {
            "schema": 1,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "config": config.to_dict(),
            "amp": str(self.learner.precision.autocast_dtype or "off"),
            "model": {**asdict(summary), "config": model.config.to_dict()},
            "labels": list(dataset.classes),
            "preprocessing": dataset.preprocessing.to_dict(),
            "dataset": {
                "name": dataset.name,
                "sha256": dataset.sha256,
                "source": location_of(config.data),
                "images": {name: len(split) for name, split in dataset.splits.items()},
                "problems": len(dataset.problems),
            },
            "git": git_commit(),
            "environment": environment("qdeploy", "torch", "numpy", "pillow"),
        }


def write_log(folder: Path, rows: list[Row]) -> None:
    """Write the epochs so far as ``log.csv``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_bytes(folder / "log.csv", text.getvalue().encode())


def _peak_memory(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()
