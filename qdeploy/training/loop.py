"""A training run from configuration to folder, and its continuation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from qdeploy.core.errors import InputError, VerdictError
from qdeploy.core.files import read_json
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.run_folder import RECORD, newest_run
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset
from qdeploy.models.registry import create_model, model_config
from qdeploy.training.batches import Batches
from qdeploy.training.checkpoint import load_checkpoint
from qdeploy.training.device import choose_precision
from qdeploy.training.distributed import World, joined
from qdeploy.training.events import require_tensorboard
from qdeploy.training.learner import Learner
from qdeploy.training.recipes import TrainConfig, config_from_record
from qdeploy.training.reporter import Reporter, Row, Silent
from qdeploy.training.run import Run
from qdeploy.training.run_files import TrainResult, describe, free_folder, save_record


def train(config: TrainConfig, out: Path | None = None, reporter: Reporter | None = None) -> TrainResult:
    """Train a model and leave a run's folder: weights, record, log and curves.

    The best epoch by validation top-1 is kept, of the raw or of the averaged weights, whichever is better; under a
    cosine the latest that is within one standard error of the best. After Ctrl-C, SIGTERM or a crash the best
    weights so far are in the folder, it can be exported, and ``resume`` goes on. Under torchrun every process
    calls this function; they share each batch, and process 0 writes.

    Args:
        config: Everything that decides the run.
        out: The run's folder; the default is a new one below ``./runs``.
        reporter: Shown the progress, in process 0.

    Raises:
        InputError: If the model, the data, an option or the folder cannot be used, or memory does not suffice.
        VerdictError: If the loss is no number any more and no return to earlier weights helped; the best weights so
            far stay in the folder.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, when the folder has been made usable.
    """
    model_config(config.model, num_classes=2)
    with _together(config, reporter) as (world, shown):
        folder = Path(world.agree(str(free_folder(config, out)) if world.writes else ""))
        dataset = _read(config, world, shown)
        amp = str(choose_precision(config.device, config.amp).autocast_dtype or "off")
        record = describe(config, dataset, amp, world.size)
        run = _build(config, dataset, record, folder, world, shown)
        if world.writes:
            save_record(folder, record)
        shown.started(record, folder)
        return _go(run)


def resume(folder: Path | None = None, reporter: Reporter | None = None) -> TrainResult:
    """Go on with a run from its newest checkpoint, as if it had never stopped.

    On the CPU the weights and the log become bit for bit those of an uninterrupted run, except for its timings.

    Args:
        folder: The run's folder; the default is the newest below ``./runs``.
        reporter: Shown the progress, in process 0.

    Raises:
        InputError: If there is no such run, it is complete, its data has changed, or another version wrote it.
    """
    folder = folder or newest_run()
    record = _unfinished(folder)
    config = config_from_record(record["config"])
    with _together(config, reporter) as (world, shown):
        dataset = _read(config, world, shown)
        _check_same(record, dataset, world)
        run = _build(config, dataset, record, folder, world, shown)
        checkpoint = load_checkpoint(folder, shown.note)
        if checkpoint is None:
            shown.note("there is no checkpoint yet; starting from the first epoch")
        else:
            run.restore(checkpoint)
        shown.started(record, folder)
        return _go(run)


@contextmanager
def _together(config: TrainConfig, reporter: Reporter | None) -> Iterator[tuple[World, Reporter]]:
    if config.tensorboard:
        require_tensorboard()
    precision = choose_precision(config.device, config.amp)
    with joined(precision.device) as world:
        if config.batch_size % world.size:
            raise InputError(f"--batch-size {config.batch_size} cannot be shared evenly by {world.size} processes")
        try:
            yield world, reporter if reporter and world.writes else Silent()
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise _too_big(config) from error
        except RuntimeError as error:
            if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
                raise
            raise _too_big(config) from error


def _too_big(config: TrainConfig) -> InputError:
    smaller = max(2, config.batch_size // 2)
    return InputError(
        f"not enough memory for {config.model} at batch size {config.batch_size}; try --batch-size {smaller} "
        "(`qdeploy train --dry-run` predicts what is needed)"
    )


def _read(config: TrainConfig, world: World, reporter: Reporter) -> Dataset:
    size = model_config(config.model, num_classes=2).input_size
    with world.first_alone():
        dataset = load_dataset(config.data, Preprocessing(size=size), reporter.reading)
    for text in dataset.notes:
        reporter.note(text)
    return dataset


def _build(config: TrainConfig, dataset: Dataset, record: Row, folder: Path, world: World, reporter: Reporter) -> Run:
    torch.manual_seed(config.seed)
    model = create_model(config.model, len(dataset.classes))
    precision = choose_precision(config.device, config.amp)
    learner = Learner(model, config, precision, dataset.preprocessing, world)
    if world.rank:  # each process drops out other units
        torch.manual_seed(config.seed + 1_000_003 * world.rank)
    batches = Batches(dataset.splits["train"], len(dataset.classes), dataset.preprocessing, config, world)
    return Run(config, dataset, learner, batches, folder, record, reporter)


def _go(run: Run) -> TrainResult:
    try:
        return run.go()
    except KeyboardInterrupt:
        run.close(interrupted=True)
        raise
    except (VerdictError, torch.OutOfMemoryError, MemoryError, RuntimeError):
        run.abandon_if_empty()
        raise


def _unfinished(folder: Path) -> dict[str, Any]:
    if not (folder / RECORD).is_file():
        raise InputError(
            f"{folder} is not a run, it has no {RECORD}; give a folder below ./runs, or none for the newest"
        )
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise InputError(f"{folder / RECORD} is damaged: it has no configuration; train again")
    if not record.get("interrupted", True):
        raise InputError(f"{folder} is complete ({record['results']['epochs']} epochs); export it, or train anew")
    return record


def _check_same(record: Row, dataset: Dataset, world: World) -> None:
    if len(record["labels"]) != len(dataset.classes):
        raise InputError(
            f"the run knows {len(record['labels'])} classes, the data has {len(dataset.classes)} now; train anew"
        )
    if record["dataset"]["sha256"] != dataset.sha256:
        raise InputError(f"the images of {record['dataset']['source']} have changed since the run began; train anew")
    if record["processes"] != world.size:
        raise InputError(
            f"the run began with {record['processes']} process(es), now there are {world.size}; start as many again"
        )
