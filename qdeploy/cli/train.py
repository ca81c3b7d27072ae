"""``qdeploy train``"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from qdeploy.cli.output import Bar, emit_json, extra_needed


@click.command("train")
@click.argument("data", required=False)
@click.option("--model", help="A name of `qdeploy models`. Default: nano.")
@click.option("--recipe", default="small", help="small (AdamW, cosine) or confidence (the paper's controller).")
@click.option("--epochs", type=int, help="Passes over the training images.")
@click.option("--batch-size", type=int, help="Images per step.")
@click.option("--lr", type=float, help="Base learning rate.")
@click.option("--seed", type=int, help="Seed of weights, order and augmentation.")
@click.option("--device", help="auto, cpu, cuda or mps.")
@click.option("--amp", help="Mixed precision: auto, off, bf16 or fp16.")
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder. Default: a new one below ./runs.")
@click.option("--json", is_flag=True, help="Print the result as one JSON document.")
def train_command(data: str | None, recipe: str, out: Path | None, json: bool, **fields: Any) -> None:
    """Train a model and keep its best weights, log and curves.

    DATA is a folder with one sub-folder of images per class, or fashion-mnist. Default: the embedded 3,500 images.
    """
    with extra_needed():
        from qdeploy.training.loop import train
        from qdeploy.training.recipes import config_from_recipe

    config = config_from_recipe(recipe, data=data, **fields)
    with Bar("reading images") as bar:
        result = train(config, out, _Progress(bar, config.epochs))
    if json:
        emit_json(asdict(result))
        return
    print(
        f"{result.run}: best epoch {result.best_epoch}, validation {result.val_top1:.2f} %, "
        f"test {result.test_top1:.2f} % top-1, {result.seconds:.0f} s, {result.images_per_s:.0f} images/s"
    )
    print("next: qdeploy export --int8")


class _Progress:
    """Shows a run on the bar and one line an epoch."""

    def __init__(self, bar: Bar, epochs: int) -> None:
        self.bar, self.epochs = bar, epochs
        self.begin = time.perf_counter()

    def reading(self, done: int, total: int) -> None:
        self.bar.update(done, total)

    def started(self, record: dict[str, Any], folder: Path) -> None:
        model, data = record["model"], record["dataset"]
        images = ", ".join(f"{n} {name}" for name, n in data["images"].items())
        self.bar.line(
            f"{model['name']}: {model['params']:,} parameters, {model['macs'] / 1e6:.1f} M MACs; amp {record['amp']}"
        )
        self.bar.line(f"{data['name']}: {len(record['labels'])} classes, {images} images; run folder {folder}")
        if data["problems"]:
            self.bar.line(f"{data['problems']} problem(s) with the data; `qdeploy data {data['source']}` lists them")
        self.begin = time.perf_counter()

    def batch(self, epoch: int, done: int, total: int) -> None:
        self.bar.update(epoch * total + done, self.epochs * total, f"epoch {epoch + 1}/{self.epochs}")

    def epoch(self, row: dict[str, Any]) -> None:
        left = (time.perf_counter() - self.begin) / row["epoch"] * (self.epochs - row["epoch"])
        self.bar.line(
            f"epoch {row['epoch']:3d}/{self.epochs}  loss {row['train_loss']:.3f}  train {row['train_top1']:5.2f} %  "
            f"val {row['val_top1']:5.2f} % (EMA {row['ema_val_top1']:5.2f} %)  lr {row['lr']:.2e}  "
            f"conf {row['confidence']:.3f}  {row['images_per_s']:.0f} img/s  ETA {left:.0f} s"
        )
