"""The start of a training run, from configuration to folder, and its continuation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load as load_tensors

from qdeploy.core.errors import InputError, MissingDependencyError, VerdictError
from qdeploy.core.files import BusyError, locked
from qdeploy.core.image_formats import formats_of_run
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.run_folder import LOCK, RECORD, RunRecord, newest_run, read_record, read_run
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset
from qdeploy.models.registry import create_model, model_config, summarise
from qdeploy.training.batches import Batches, training_split
from qdeploy.training.checkpoint import load_checkpoint, remove_checkpoints
from qdeploy.training.device import choose_precision, deterministic, seed_everything
from qdeploy.training.distributed import World, joined
from qdeploy.training.events import require_tensorboard
from qdeploy.training.learner import Learner
from qdeploy.training.normalisation import NORMALISATIONS, colour_statistics
from qdeploy.training.progress import Progress, Silent
from qdeploy.training.recipes import TrainConfig, config_from_record
from qdeploy.training.run import Run
from qdeploy.training.run_files import TrainResult, describe, free_folder, read_log, remove_if_empty
from qdeploy.training.teacher import absolute, teacher_targets
from qdeploy.training.threads import fixed_threads
from qdeploy.training.weights import load_weights


def train(
    config: TrainConfig, out: Path | None = None, progress: Progress | None = None, *, cores: int | None = None
) -> TrainResult:
    """Train a model and leave a run's folder: weights, record, log and curves.

    The best epoch by validation top-1 is kept, of the raw or of the averaged weights, whichever is better; under a
    cosine the latest that is within one standard error of the best. After Ctrl-C, SIGTERM or a crash the best
    weights so far are in the folder, it can be exported, and ``resume`` goes on. Under torchrun every process
    calls this function; they share each batch, and process 0 writes.

    Args:
        config: Everything that decides the run.
        out: The run's folder; the default is a new one below ``./runs``.
        progress: Told how far it is, in process 0.
        cores: Most CPU threads where this process has a share of the machine only; by default the cores it may use.

    Raises:
        InputError: If the model, the data, an option or the folder cannot be used, or memory does not suffice.
        MissingDependencyError: If TensorBoard or the compiler that the configuration asks for is not there.
        VerdictError: If the loss is not finite and no return to earlier weights helped; the best weights so
            far stay in the folder.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, when the folder has been made usable.
    """
    require_buildable(config)
    config = replace(
        config,
        teacher=absolute(config.teacher),
        weights=absolute(config.weights),
        threads=fixed_threads(config, cores),
    )
    with together(config, progress) as (world, shown):
        folder = Path(world.agree(str(free_folder(config, out)) if world.writes else ""))
        dataset = read_data(config, world, shown)
        record = describe(config, dataset, choose_precision(config.device, config.amp), world.size)
        run = build_run(config, dataset, record, folder, world, shown, cores)
        with _held(folder, world):
            if world.writes:
                record.save(free_folder(config, folder))  # reading takes time: is it still free?
            shown.started(record, folder)
            return run_to_end(run)


def resume(folder: Path | None = None, progress: Progress | None = None, *, epochs: int | None = None) -> TrainResult:
    """Go on with a run from its newest checkpoint, as if it had never stopped; or give it more epochs.

    On the CPU the weights and the log become bit for bit those of an uninterrupted run with the same numbers of
    threads, except for its timings. More epochs begin with the best weights so far and a new optimizer, and the
    schedule runs anew over them.

    Args:
        folder: The run's folder; the default is the newest below ``./runs``.
        progress: Told how far it is, in process 0.
        epochs: Epochs that the run is to have in the end, more than it has; of a complete run, too.

    Raises:
        InputError: If there is no such run, it is complete or going on, its data, the device, the precision or the
            number of processes has changed, or another version wrote it.
    """
    folder = folder or newest_run()
    config = _going_on(folder, epochs)[1]
    with together(config, progress) as (world, shown), _held(folder, world):
        record, config = _going_on(folder, epochs)  # now that no other process can complete it
        dataset = read_data(config, world, shown)
        _check_same(record, config, dataset, world)
        checkpoint = load_checkpoint(folder, shown.note) if epochs is None else None
        run = build_run(config, dataset, record, folder, world, shown, begun=bool(checkpoint or config.continued))
        if checkpoint is not None:
            run.restore(checkpoint)
            steps = run.batches.steps
            shown.note(f"going on in epoch {run.epoch + 1} of {config.epochs}, after {run.step} of its {steps} steps")
        elif config.continued:
            weights = load_tensors(read_run(folder)[1])
            run.extend(weights, read_log(folder, config.continued))
            shown.note(_extension(folder, config, record))
        else:
            shown.note("there is no checkpoint yet; starting from the first epoch")
        if epochs is not None and world.writes:
            remove_checkpoints(folder)
            record.save(folder)
        shown.started(record, folder)
        return run_to_end(run)


def _going_on(folder: Path, epochs: int | None) -> tuple[RunRecord, TrainConfig]:
    """Return the record and the configuration with which a run goes on, for so many epochs in the end."""
    if epochs is None:
        record = _unfinished(folder)
        return record, config_from_record(record.config)
    record = read_record(folder)
    config = config_from_record(record.config)
    done = record.results.epochs if record.results else 0
    if not done:
        raise InputError(f"{folder} has no epoch yet", fix="go on with it by `resume` alone, or train anew")
    if epochs <= done:
        raise InputError(f"{folder} has {done} epochs already", found=f"`epochs={epochs}`", fix="give more")
    config = replace(config, epochs=epochs, continued=done)
    return replace(record, config=config.to_dict(), interrupted=True), config


def _extension(folder: Path, config: TrainConfig, record: RunRecord) -> str:
    more = config.epochs - config.continued
    schedule = f"one cosine from a learning rate of {config.lr:g} to {config.min_lr:g}"
    if config.schedule == "confidence":
        schedule = f"the controller, scaled to them, from a learning rate of {config.lr:g}"
    best = record.results.best_epoch if record.results else 0
    added = f"{more} more epoch{'s' * (more != 1)} after {config.continued}"
    return (
        f"{folder}: {added}, from the best weights (epoch {best}) with a new optimizer; the schedule runs anew over "
        f"them: {schedule}"
    )


def require_buildable(config: TrainConfig) -> None:
    """Check that the model can be built, and that no part of the recipe is for a head that it does not have.

    Raises:
        InputError: If not.
    """
    summarise(config.model, None, config.input_size, config.model_changes)
    shape = model_config(config.model, None, config.input_size, config.model_changes)
    if getattr(shape, "head", "gap") == "gap":
        for part in ("confidence_from_label", "deep_supervision"):
            if getattr(config, part):
                raise InputError(f"{part}: only with a model that has the SOTA head, found {config.model}")


@contextmanager
def together(config: TrainConfig, progress: Progress | None) -> Iterator[tuple[World, Progress]]:
    """Yield this run's processes and whom to tell; what a lack of memory or a compiler raises becomes one line."""
    if config.tensorboard:
        require_tensorboard()
    precision = choose_precision(config.device, config.amp)
    with deterministic(config.deterministic), joined(precision.device) as world:
        if config.batch_size % world.size:
            raise InputError(f"`batch_size={config.batch_size}` cannot be shared evenly by {world.size} processes")
        try:
            yield world, progress if progress and world.writes else Silent()
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise _too_big(config) from error
        except RuntimeError as error:
            if "not enough memory" in str(error) or "can't allocate memory" in str(error):
                raise _too_big(config) from error
            if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
                raise _not_compiled(error) from error
            raise


def _too_big(config: TrainConfig) -> InputError:
    smaller = max(2, config.batch_size // 2)
    return InputError(
        f"not enough memory for {config.model} at batch size {config.batch_size}",
        fix=f"try `batch_size={smaller}` (a dry run predicts what is needed)",
    )


def _not_compiled(error: RuntimeError) -> MissingDependencyError:
    reason = str(error).strip().partition("\n")[0]
    return MissingDependencyError(
        f"compile: torch.compile failed ({reason}); it needs a C++ compiler such as g++, on a GPU Triton",
        fix="install it, or leave compile out",
    )


@contextmanager
def _held(folder: Path, world: World) -> Iterator[None]:
    """Keep other processes out of a run's folder; the file of the lock stays as long as there is something to resume.

    Raises:
        InputError: If another process is in it.
    """
    with ExitStack() as stack:
        if world.writes:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(locked(folder / LOCK, wait=False))
            except BusyError as error:
                raise InputError(f"the run in {folder} is going on in another process; wait, or end it") from error
        yield
    if world.writes:
        (folder / LOCK).unlink(missing_ok=True)


def read_data(config: TrainConfig, world: World, progress: Progress) -> Dataset:
    """Read the data set of a run as its model takes images; what happened is told."""
    size = model_config(config.model, input_size=config.input_size).input_size
    mean, std = NORMALISATIONS.get(config.normalisation, NORMALISATIONS["imagenet"])
    rules = Preprocessing(size=size, interpolation=config.interpolation, mean=mean, std=std)
    rules = rules.taking(formats_of_run(config.to_dict()))
    with world.first_alone():
        dataset = load_dataset(config.data, rules, progress.reading)
    if config.normalisation == "data":
        mean, std = colour_statistics(dataset.splits["train"].pixels)
        dataset = replace(dataset, preprocessing=replace(dataset.preprocessing, mean=mean, std=std))
    for text in dataset.notes:
        progress.note(text)
    return dataset


def build_run(
    config: TrainConfig,
    dataset: Dataset,
    record: RunRecord,
    folder: Path,
    world: World,
    progress: Progress,
    cores: int | None = None,
    *,
    begun: bool = False,
) -> Run:
    """Make the model and everything else of a run, before its first step."""
    seed_everything(config.seed)
    model = create_model(config.model, len(dataset.classes), config.input_size, config.model_changes)
    if config.weights and not begun:
        progress.note(load_weights(model, config, dataset))
    precision = choose_precision(config.device, config.amp)
    learner = Learner(model, config, precision, dataset.preprocessing, world)
    if world.rank:  # each process drops out other units
        seed_everything((config.seed + 1_000_003 * world.rank) % 2**32)
    split, answers = training_split(dataset, config), None
    if config.teacher:
        with world.first_alone():
            answers = teacher_targets(config.teacher, config.distill_temperature, dataset, split)
    batches = Batches(split, len(dataset.classes), dataset.preprocessing, config, world, answers)
    return Run(config, dataset, learner, batches, folder, record, progress, cores)


def run_to_end(run: Run) -> TrainResult:
    """Train to the end; what is interrupted leaves a folder that is usable."""
    try:
        return run.go()
    except KeyboardInterrupt:
        run.close(interrupted=True)
        raise
    except (VerdictError, torch.OutOfMemoryError, MemoryError, RuntimeError):
        if run.world.writes:
            remove_if_empty(run.folder)
        raise


def _unfinished(folder: Path) -> RunRecord:
    record = read_record(folder)
    if record.device is None:
        raise InputError(f"{folder / RECORD} is damaged: 'device' is missing; train again")
    if not record.interrupted:
        remove_checkpoints(folder)  # it may have been killed before it did so itself
        raise InputError(
            f"{folder} is complete ({record.config.get('epochs')} epochs)",
            fix="export it, give more `epochs`, or train anew",
        )
    return record


def _check_same(record: RunRecord, config: TrainConfig, dataset: Dataset, world: World) -> None:
    precision = choose_precision(config.device, config.amp)
    began, now = (record.device, record.amp), (precision.device.type, precision.amp)
    if began != now:
        raise InputError(
            f"the run began on {began[0]} with amp {began[1]}, here it would go on on {now[0]} with amp {now[1]}; "
            "resume it on such a machine (an empty CUDA_VISIBLE_DEVICES hides the GPUs), or train anew"
        )
    if len(record.labels) != len(dataset.classes):
        raise InputError(
            f"the run knows {len(record.labels)} classes, the data has {len(dataset.classes)} now; train anew"
        )
    if record.dataset.sha256 != dataset.sha256:
        raise InputError(f"the images of {record.dataset.source} have changed since the run began; train anew")
    if record.processes != world.size:
        raise InputError(
            f"the run began with {record.processes} process(es), now there are {world.size}; start as many again"
        )
