"""The start of a training run, from configuration to folder, and its continuation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from qdeploy.core.errors import InputError, MissingDependencyError, VerdictError
from qdeploy.core.files import BusyError, locked
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.run_folder import LOCK, RECORD, RunRecord, newest_run, read_record
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset
from qdeploy.models.registry import create_model, model_config, summarise
from qdeploy.training.batches import Batches
from qdeploy.training.checkpoint import load_checkpoint, remove_checkpoints
from qdeploy.training.device import choose_precision
from qdeploy.training.distributed import World, joined
from qdeploy.training.events import require_tensorboard
from qdeploy.training.learner import Learner
from qdeploy.training.progress import Progress, Silent
from qdeploy.training.recipes import TrainConfig, config_from_record
from qdeploy.training.run import Run
from qdeploy.training.run_files import TrainResult, describe, free_folder, remove_if_empty


def train(config: TrainConfig, out: Path | None = None, progress: Progress | None = None) -> TrainResult:
    """Train a model and leave a run's folder: weights, record, log and curves.

    The best epoch by validation top-1 is kept, of the raw or of the averaged weights, whichever is better; under a
    cosine the latest that is within one standard error of the best. After Ctrl-C, SIGTERM or a crash the best
    weights so far are in the folder, it can be exported, and ``resume`` goes on. Under torchrun every process
    calls this function; they share each batch, and process 0 writes.

    Args:
        config: Everything that decides the run.
        out: The run's folder; the default is a new one below ``./runs``.
        progress: Told how far it is, in process 0.

    Raises:
        InputError: If the model, the data, an option or the folder cannot be used, or memory does not suffice.
        MissingDependencyError: If TensorBoard or the compiler that the configuration asks for is not there.
        VerdictError: If the loss is not finite and no return to earlier weights helped; the best weights so
            far stay in the folder.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, when the folder has been made usable.
    """
    summarise(config.model, input_size=config.input_size)  # refuses what cannot be built
    with _together(config, progress) as (world, shown):
        folder = Path(world.agree(str(free_folder(config, out)) if world.writes else ""))
        dataset = _read(config, world, shown)
        record = describe(config, dataset, choose_precision(config.device, config.amp), world.size)
        run = _build(config, dataset, record, folder, world, shown)
        with _held(folder, world):
            if world.writes:
                record.save(free_folder(config, folder))  # reading takes time: is it still free?
            shown.started(record, folder)
            return _go(run)


def resume(folder: Path | None = None, progress: Progress | None = None) -> TrainResult:
    """Go on with a run from its newest checkpoint, as if it had never stopped.

    On the CPU the weights and the log become bit for bit those of an uninterrupted run, except for its timings.

    Args:
        folder: The run's folder; the default is the newest below ``./runs``.
        progress: Told how far it is, in process 0.

    Raises:
        InputError: If there is no such run, it is complete or going on, its data, the device, the precision or the
            number of processes has changed, or another version wrote it.
    """
    folder = folder or newest_run()
    config = config_from_record(_unfinished(folder).config)
    with _together(config, progress) as (world, shown), _held(folder, world):
        record = _unfinished(folder)  # now that no other process can complete it
        dataset = _read(config, world, shown)
        _check_same(record, config, dataset, world)
        run = _build(config, dataset, record, folder, world, shown)
        checkpoint = load_checkpoint(folder, shown.note)
        if checkpoint is None:
            shown.note("there is no checkpoint yet; starting from the first epoch")
        else:
            run.restore(checkpoint)
        shown.started(record, folder)
        return _go(run)


@contextmanager
def _together(config: TrainConfig, progress: Progress | None) -> Iterator[tuple[World, Progress]]:
    if config.tensorboard:
        require_tensorboard()
    precision = choose_precision(config.device, config.amp)
    with joined(precision.device) as world:
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


def _read(config: TrainConfig, world: World, progress: Progress) -> Dataset:
    size = model_config(config.model, input_size=config.input_size).input_size
    rules = Preprocessing(size=size, interpolation=config.interpolation)
    with world.first_alone():
        dataset = load_dataset(config.data, rules, progress.reading)
    for text in dataset.notes:
        progress.note(text)
    return dataset


def _build(
    config: TrainConfig, dataset: Dataset, record: RunRecord, folder: Path, world: World, progress: Progress
) -> Run:
    torch.manual_seed(config.seed)
    model = create_model(config.model, len(dataset.classes), config.input_size)
    precision = choose_precision(config.device, config.amp)
    learner = Learner(model, config, precision, dataset.preprocessing, world)
    if world.rank:  # each process drops out other units
        torch.manual_seed(config.seed + 1_000_003 * world.rank)
    batches = Batches(dataset.splits["train"], len(dataset.classes), dataset.preprocessing, config, world)
    return Run(config, dataset, learner, batches, folder, record, progress)


def _go(run: Run) -> TrainResult:
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
        raise InputError(f"{folder} is complete ({record.config.get('epochs')} epochs); export it, or train anew")
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
