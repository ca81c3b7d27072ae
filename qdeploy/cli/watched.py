"""What a person sees of a training: a bar, one line an epoch, and after an interruption how it goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdeploy.cli.output import Bar
from qdeploy.core.words import counted, percent

if TYPE_CHECKING:
    from qdeploy.core.run_folder import RunRecord


@contextmanager
def watched() -> Iterator[TrainingShown]:
    """Show a run, and after an interruption how it goes on."""
    with Bar("reading images") as bar:
        progress = TrainingShown(bar)
        try:
            yield progress
        except KeyboardInterrupt:
            if progress.folder:
                bar.line(f"the run can be exported; `qdeploy train --resume {progress.folder}` goes on")
            raise


class TrainingShown:
    """Shows a run on the bar and one line an epoch."""

    def __init__(self, bar: Bar) -> None:
        self.bar, self.epochs, self.driven = bar, 0, False
        self.folder: Path | None = None
        self.began: tuple[float, int] | None = None
        self.steps = 0

    def reading(self, done: int, total: int) -> None:
        """Show how many images are read."""
        self.bar.update(done, total)

    def started(self, record: RunRecord, folder: Path) -> None:
        """Say what is trained on what."""
        model, data = record.model, record.dataset
        self.epochs, self.folder, self.began = record.config["epochs"], folder, None
        self.driven = record.config["schedule"] == "confidence"
        images = ", ".join(f"{n} {name}" for name, n in data.images.items())
        self.bar.line(
            f"{model.name}: {model.params:,} parameters, {model.macs / 1e6:.1f} M MACs; "
            f"recipe {record.config['recipe']}, amp {record.amp.removeprefix('torch.')}"
        )
        self.bar.line(f"{data.name}: {len(record.labels)} classes, {images} images; run folder {folder}")
        if teacher := record.config["teacher"]:
            self.bar.line(f"taught by {teacher}: {percent(record.config['distill_weight'], 0)} of the loss")
        if data.problems:
            self.bar.line(f"{counted(data.problems, 'problem')} with the data; `qdeploy data {data.source}` lists them")

    def batch(self, epoch: int, done: int, total: int) -> None:
        """Move the bar; ``epoch`` counts from 0."""
        self.steps = total
        if self.began is None:
            self.began = time.perf_counter(), epoch * total + done
        self.bar.update(epoch * total + done, self.epochs * total, f"epoch {epoch + 1}/{self.epochs}")

    def epoch(self, row: dict[str, Any]) -> None:
        """Print an epoch's line."""
        confidence = f"conf {row['confidence']:.3f}  " if self.driven else ""
        self.bar.line(
            f"epoch {row['epoch']:3d}/{self.epochs}  loss {row['train_loss']:.3f}  train {row['train_top1']:5.2f} %  "
            f"val {row['val_top1']:5.2f} % (EMA {row['ema_val_top1']:5.2f} %)  lr {row['lr']:.2e}  "
            f"{confidence}{row['images_per_s']:.0f} img/s{self._left(row['epoch'])}"
        )

    def _left(self, epochs: int) -> str:
        """Say how long the rest takes if its steps take as long as those since the first; nothing if there are none."""
        if self.began is None:
            return ""
        begin, first = self.began
        done = epochs * self.steps - first
        if done <= 0:
            return ""
        return f"  ETA {(time.perf_counter() - begin) / done * (self.epochs - epochs) * self.steps:.0f} s"

    def note(self, text: str) -> None:
        """Print a line."""
        self.bar.line(text)
