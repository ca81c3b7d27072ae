"""The command ``qdeploy train``: its options, its plan and its results."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdeploy.cli.options import GOING_ON, NEWEST, TRAINING, WHERE, Formats, Json, Settings, Threads
from qdeploy.cli.output import emit_json, extra_needed, field_value, hint, say
from qdeploy.cli.watched import watched
from qdeploy.core.errors import InputError
from qdeploy.core.only_with import switched_on
from qdeploy.core.words import counted

if TYPE_CHECKING:
    from qdeploy.training import TrainConfig


def train_command(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="A folder with one sub-folder of images per class, or the name of a published set (`qdeploy data` "
            "lists them). Default: the embedded 3,500 images.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A name of `qdeploy models`, or package.module:Class of your own. Default: that of --weights, else "
            "the recipe's, nano for small."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|FILE",
            help="Begin with the weights of a run or a .safetensors file; other classes have a new head.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="small (default), qdeploy's own, or the paper's, e.g. qonstraint-5.9. See docs.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the training images. Default: the recipe's; small: 36.", rich_help_panel=TRAINING
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Images per step, over all processes. Default: the recipe's; small: 64.", rich_help_panel=TRAINING
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Base learning rate. Default: the recipe's; small: 0.002.", rich_help_panel=TRAINING),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of weights, order and augmentation. Default: the recipe's; small: 0.", rich_help_panel=TRAINING
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="Train so often, with as many seeds; mean and deviation.", rich_help_panel=TRAINING),
    ] = None,
    formats: Formats = None,
    settings: Settings = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or mps. Default: auto.", rich_help_panel=WHERE)
    ] = None,
    amp: Annotated[
        str | None,
        typer.Option(
            help="Mixed precision: auto, off, bf16 or fp16. Default: the recipe's; small: auto.", rich_help_panel=WHERE
        ),
    ] = None,
    threads: Threads = None,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="On a GPU, only operations that repeat; slower. On a CPU, as many threads as cores.",
            rich_help_panel=WHERE,
        ),
    ] = False,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|FILE,...",
            help="Learn from trained models too: a run, a model file, or several.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The run's folder. Default: a new one below ./runs.", rich_help_panel=GOING_ON),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Go on with a run; without RUN, with the newest. With --epochs N, until it has N.",
            rich_help_panel=GOING_ON,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show what would be trained and the memory it takes; train nothing.",
            rich_help_panel=GOING_ON,
        ),
    ] = False,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Also write TensorBoard events into the run's folder."),
    ] = False,
    json: Json = False,
) -> None:
    """Train a model and keep its best weights, log and curves.

    Several GPUs: torchrun --nproc-per-node N -m qdeploy train ...
    """
    with extra_needed():
        from qdeploy.training import start
        from qdeploy.training.seeds import train_seeds

    options = {
        "data": data,
        "model": model,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "formats": formats,
        "device": device,
        "amp": amp,
        "threads": threads,
        "tensorboard": tensorboard or None,
        "deterministic": deterministic or None,
        "teacher": teacher,
        "weights": weights,
    }
    given: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
    if resume is not None:
        if given.keys() - {"epochs"} or recipe or out or settings or dry_run or seeds is not None:
            raise InputError("--resume takes everything from the run; give only --epochs or --json with it, no data")
        with watched() as progress:
            found: Any = start.resume(None if resume == NEWEST else Path(resume), progress, epochs=epochs)
    else:
        config = _configured(recipe, given, settings)
        if dry_run:
            _show_plan(config, json)
            return
        with watched() as progress:
            found = start.train(config, out, progress) if seeds is None else train_seeds(config, seeds, out, progress)
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        (_show_result if seeds is None else _show_seeds)(asdict(found), json)


def _configured(recipe: str | None, given: dict[str, Any], settings: list[str] | None) -> TrainConfig:
    """Return the configuration of a recipe, the options given and ``--set``; weights bring their model."""
    from qdeploy.training import recipes
    from qdeploy.training.weights import fields_of

    changes = recipes.parse_settings(tuple(settings or ()))
    if twice := sorted(given.keys() & changes):
        raise InputError(f"{twice[0]} is given twice, with --set and as an option of its own; give it once")
    if "weights" in given and not {"model", "model_fields"} & {*given, *changes}:
        changes = {**fields_of(given["weights"]), **changes}
    return recipes.config_from_recipe(recipe or "small", **given, **changes)


def _show_plan(config: Any, json: bool) -> None:
    with extra_needed():
        from qdeploy.training.plan import DEVICES, plan
    found = plan(config)
    fits = {name: found.fits(limit) for name, limit in DEVICES.items()}
    if json:
        emit_json({**asdict(found), "memory_bytes": found.memory_bytes, "fits": fits})
        return
    for name, value in switched_on(found.config).items():
        say(f"{name:>22}  {field_value(value)}")
    size = f"{found.macs / 1e6:.1f} M MACs at {found.input_size} pixels"
    say("")
    say(f"{found.model} for {found.classes} classes: {found.params:,} parameters, {size}")
    say(
        f"device {found.device}, amp {found.amp.removeprefix('torch.')}; "
        f"memory about {found.memory_bytes / 1e9:.2f} GB: "
        f"{found.state_bytes / 1e9:.2f} GB weights, gradients, optimizer and average, "
        f"{found.activation_bytes / 1e9:.2f} GB for {config.batch_size} images"
    )
    say(_data_words(found, config.epochs))
    say("on a GPU 1.1 to 1.55 times as much; it fits into " + ", ".join(f"{name}: {fit}" for name, fit in fits.items()))


def _data_words(found: Any, epochs: int) -> str:
    """Say what a run would train on, what would be downloaded first, and how long an epoch takes."""
    images = ", ".join(f"{n:,} {name}" for name, n in found.images.items())
    text = f"{images} images, if all are usable; {counted(found.steps_per_epoch, 'step')} an epoch"
    if found.download:
        text = f"the data are not on this machine: {found.download} would be downloaded first; {text}"
    if found.epoch_s is None:
        return text
    whole_s = found.epoch_s * epochs
    whole = f"{whole_s:.0f} s" if whole_s < 120 else f"{whole_s / 60:.0f} min"
    each = f"{found.epoch_s:.0f}" if found.epoch_s >= 10 else f"{found.epoch_s:.2g}"
    return f"{text}, about {each} s each as busy as the machine is now: {whole} for {counted(epochs, 'epoch')}"


def _show_seeds(result: dict[str, Any], json: bool) -> None:
    if json:
        emit_json(result)
        return
    for run in result["runs"]:
        _show_result(run, json=False, last=False)
    for name, title in (("val_top1", "validation"), ("test_top1", "test")):
        found = result[name]
        spread = "" if found["std"] is None else f" +- {found['std']:.2f}"
        say(f"{title} top-1 of {counted(found['n'], 'seed')}: {found['mean']:.2f}{spread} %")
    best = max(result["runs"], key=lambda run: run["val_top1"])
    hint(f"next: qdeploy export {shlex.quote(best['run'])} --int8")


def _show_result(result: dict[str, Any], json: bool, last: bool = True) -> None:
    if json:
        emit_json(result)
        return
    say(
        f"{result['run']}: best epoch {result['best_epoch']} ({result['best_weights']} weights), "
        f"validation {result['val_top1']:.2f} %, test {result['test_top1']:.2f} % top-1, "
        f"{result['seconds']:.0f} s, {result['images_per_s']:.0f} images/s"
    )
    if last:
        from qdeploy.core.run_folder import RUNS

        run = "" if Path(result["run"]).parent == RUNS else f" {shlex.quote(result['run'])}"
        hint(f"next: qdeploy export{run} --int8")
