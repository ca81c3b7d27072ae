"""One piece of the GPU campaign; benchmarks/gpu_campaign.sh says what the pieces are and runs them.

    python benchmarks/gpu_campaign.py PIECE OUT WORK [--limit-s 420] [--epochs 40] [--dry-run]

A piece is a list of named rows. Each row is kept in OUT/PIECE.json as soon as it is there, and rows that are there are
not repeated, so a piece that was cut off goes on. Exit code: 0 complete, 1 a row failed, 3 the time was up, 130
interrupted.
"""

from __future__ import annotations

import argparse
import csv
import gc
import importlib
import importlib.util
import math
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cache, partial
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

try:
    import ablation
    import numpy as np
    import torch

    import qdeploy
    from qdeploy.core.errors import InputError, QdeployError
    from qdeploy.core.files import read_json, write_json
    from qdeploy.core.lineage import git_commit
    from qdeploy.core.machine import environment, peak_memory_bytes
    from qdeploy.core.metrics import wilson_interval
    from qdeploy.core.preprocessing import Preprocessing
    from qdeploy.core.run_folder import RECORD
    from qdeploy.data.catalog import load_dataset
    from qdeploy.data.dataset import Split
    from qdeploy.data.embedded import NAME as EMBEDDED
    from qdeploy.models.registry import MODELS, PUBLISHED_CLASSES, create_model, summarise
    from qdeploy.training import TrainConfig, config_from_recipe
    from qdeploy.training.batches import Batch, Batches
    from qdeploy.training.device import choose_precision
    from qdeploy.training.distributed import World
    from qdeploy.training.learner import Learner, Tally
    from qdeploy.training.recipes import RECIPES
    from qdeploy.training.schedule import build_schedule
except ImportError as error:
    sys.exit(f"the library {error.name or error} is missing here: pip install 'qdeploy[train]'")

Row = dict[str, Any]
Cell = Callable[[float], Row | None]
"""Makes a row in about the given seconds; None if they were not enough, and it goes on when called again."""

CUT_OFF, INTERRUPTED = 3, 130
REPORTED = "qonstraint-5.9-gap"
PAPER: dict[str, Row] = {
    REPORTED: {"memory_gb": 9.2, "epoch_s": 333},
    "qonstraint-5.9-sota": {"memory_gb": 9, "epoch_s": 370},
    "qonstraint-5.9-aggressive": {"memory_gb": 6.5, "epoch_s": 150},
    "qonstraint-5.9-lighter": {"memory_gb": 10.6, "epoch_s": 215},
    "qonstraint-5.9-heavier": {"memory_gb": 11.2, "epoch_s": 230},
    "qonstraint-5.9-heaviest": {"memory_gb": 9.9, "epoch_s": 490},
}
"""One P100, an epoch of 80,000 images at the recipe's batch size (paper, IV.B and the comparison table)."""
MEMORY_GB, EPOCH_S, DATA_SHARE, TEST_TOP1 = 9.2, 15.0, 0.10, 94.5
"""What 5.9 is to reach on an H200."""
EPOCH_IMAGES = 80_000
PRESET_BATCH = 128
PACKAGES = ("torch", "torchvision", "triton", "onnx", "onnxruntime", "numpy", "pillow", "tensorrt", "tensorrt_rtx_cu13")


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured and trained."""

    models: dict[str, tuple[str, int | None]]
    """Of ``speed``: each model's recipe and batch size, None for the recipe's own."""
    reported: Row
    """What the recipe of the reported model is changed to."""
    images: int = EPOCH_IMAGES
    """In the random training set."""
    warmup: int = 20
    """Steps in each phase of the augmentation before any is timed."""
    groups: int = 6
    group_steps: int = 10
    compile: tuple[bool, ...] = (False, True)
    data: str = "fashion-mnist"
    epochs: int = 40
    """Of ``accuracy`` unless given, and of ``presets``."""
    presets: tuple[str, ...] = ("nano", "nano-a", "micro")
    trained: Row
    """What further options the trained models get."""
    seeds: int = 3
    variants: int | None = None
    """Of an ablation; None for all."""


def recipe_of(model: str) -> tuple[str, int | None]:
    """The paper's recipe for a model, at the medium augmentation it reports; ours have their own."""
    for name in RECIPES:
        config = config_from_recipe(name)
        if config.model == model and config.augmentation == "mid":
            return name, None
    return "small", PRESET_BATCH


REAL = Size(models={name: recipe_of(name) for name in MODELS}, reported={}, trained={})
TINY = Size(
    models={"nano-ar": ("qonstraint-5.9", 4)},
    reported={"model": "nano-ar", "batch_size": 4},
    images=24,
    warmup=1,
    groups=2,
    group_steps=1,
    compile=(False,),
    data=EMBEDDED,
    epochs=1,
    presets=("nano-ar",),
    trained={"model": "nano-ar", "batch_size": 64},
    seeds=1,
    variants=1,
)


class Results:
    """A piece's file. Rows that another machine or version began are not mixed with this one's."""

    def __init__(self, piece: str, out: Path, dry_run: bool) -> None:
        self.piece, self.path, self.dry_run = piece, out / f"{piece}.json", dry_run
        self.environment = describe_machine()
        self.rows: dict[str, Row] = {}
        self.calls = 1
        if self.path.exists():
            self._take_up(read_json(self.path))

    def _take_up(self, begun: Row) -> None:
        if begun["state"].endswith("dry run") != self.dry_run or identity(begun["environment"]) != identity(
            self.environment
        ):
            print(f"{self.piece}: {self.path} was begun on another machine or version; it begins anew")
            return
        self.calls += begun["calls"]
        self.rows = {row.pop("name"): row for row in begun["rows"]}

    def keep(self, state: str, **facts: Any) -> None:
        """Write the file, whole or not at all."""
        document = {
            "state": f"{state}, dry run" if self.dry_run else state,
            "command": f"benchmarks/gpu_campaign.sh {'--dry-run ' if self.dry_run else ''}OUT {self.piece}",
            "calls": self.calls,
            "date": date.today().isoformat(),
            "git": git_commit(),
            "environment": self.environment,
            **facts,
            "rows": [{"name": name, **row} for name, row in self.rows.items()],
        }
        write_json(self.path, document)


def identity(machine: Row) -> tuple[Any, ...]:
    """What must be the same for numbers to be compared."""
    gpu = machine["gpu"] or {}
    return machine["cpu"], machine["versions"], gpu.get("name"), gpu.get("driver")


def describe_machine() -> Row:
    """The machine as in every benchmark here, and its GPU."""
    found = environment("qdeploy", *PACKAGES)
    found["versions"]["qdeploy"] = qdeploy.__version__
    found["gpu"] = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": driver_version(),
        }
    return found


def driver_version() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()


def spread(values: Sequence[float], digits: int = 3) -> Row:
    return {
        "n": len(values),
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


# Real steps on random images: speed, precision, data


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
            RuntimeError: If the loss is no number.
        """
        self._wait()
        begin = perf_counter_ns()
        for _ in range(steps):
            loss = self.step(epoch, fixed)
        self._wait()
        passed = (perf_counter_ns() - begin) / 1e6 / steps
        if not math.isfinite(loss.item()):
            raise RuntimeError("the loss is no number")
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


def or_unavailable(cell: Cell) -> Cell:
    """That a device cannot do something, or has not the memory, is a result."""

    def made(seconds: float) -> Row | None:
        try:
            return cell(seconds)
        except (InputError, torch.OutOfMemoryError) as error:
            return {"unavailable": one_line(error)}

    return made


def speed_cells(size: Size) -> dict[str, Cell]:
    return {model: or_unavailable(partial(speed_row, model, size)) for model in size.models}


def speed_row(model: str, size: Size, _: float) -> Row:
    recipe, batch_size = size.models[model]
    stepper = Stepper(config_from_recipe(recipe, model=model, batch_size=batch_size), size)
    stepper.warm_up(size.warmup)
    times = {
        phase: [stepper.group_ms(epoch, size.group_steps) for _ in range(size.groups)]
        for phase, epoch in stepper.phases.items()
    }
    batch = stepper.config.batch_size
    return {
        **stepper.facts(),
        "steps_per_group": size.group_steps,
        "step_ms": {phase: spread(values) for phase, values in times.items()},
        "images_per_s": {phase: round(1000 * batch / statistics.median(v), 1) for phase, v in times.items()},
        "epoch_80000_s": {
            phase: round(EPOCH_IMAGES / batch * statistics.median(v) / 1000, 2) for phase, v in times.items()
        },
        **stepper.memory(),
        "paper_p100": PAPER.get(model),
    }


def speed_verdict(rows: dict[str, Row]) -> Row:
    row = rows.get(REPORTED, {})
    if "peak_allocated_bytes" not in row:
        return {}
    return {
        f"{REPORTED}: peak allocated GB": at_most(row["peak_allocated_bytes"] / 1e9, MEMORY_GB),
        f"{REPORTED}: seconds of 80,000 images": at_most(max(row["epoch_80000_s"].values()), EPOCH_S),
    }


def precision_cells(size: Size) -> dict[str, Cell]:
    """Every combination, and what a user gets who chooses nothing."""
    choices = [("auto", True, False)]
    choices += [(a, c, k) for k in size.compile for c in (True, False) for a in ("bf16", "fp16", "off")]
    return {
        f"amp {amp}, {'channels last' if last else 'channels first'}, {'compiled' if compiled else 'eager'}": (
            or_unavailable(partial(precision_row, size, amp, last, compiled))
        )
        for amp, last, compiled in choices
    }


def precision_row(size: Size, amp: str, channels_last: bool, compiled: bool, _: float) -> Row:
    config = config_from_recipe("qonstraint-5.9", **size.reported, amp=amp, compile=compiled)
    stepper = Stepper(config, size, channels_last=channels_last)
    first_s = stepper.warm_up(max(1, size.warmup // 2))
    epoch = stepper.phases["phase_1"]
    times = [stepper.group_ms(epoch, size.group_steps) for _ in range(size.groups)]
    row = {
        **stepper.facts(),
        "channels_last": channels_last,
        "compiled": compiled,
        "steps_per_group": size.group_steps,
        "first_step_s": round(first_s, 2),
        "step_ms": spread(times),
        "images_per_s": round(1000 * config.batch_size / statistics.median(times), 1),
        **stepper.memory(),
    }
    if compiled and (amp, channels_last) == ("bf16", True):
        # drop path follows the confidence: what the first step costs after an epoch has changed it
        begin = perf_counter()
        stepper.step(epoch, confidence=0.71).item()
        row["step_after_new_confidence_s"] = round(perf_counter() - begin, 2)
    return row


def data_cells(size: Size) -> dict[str, Cell]:
    return {phase: or_unavailable(partial(data_row, phase, size)) for phase in ("phase_1", "phase_2")}


def data_row(phase: str, size: Size, _: float) -> Row:
    """A whole epoch, group by group in turn with the same steps on one batch that is already on the device."""
    stepper = Stepper(config_from_recipe("qonstraint-5.9", **size.reported), size)
    stepper.warm_up(size.warmup)
    epoch, steps = stepper.phases[phase], stepper.batches.steps
    fixed = stepper.draw(epoch, 0)
    drawn: list[float] = []
    still: list[float] = []
    counts = [min(size.group_steps, steps - first) for first in range(0, steps, size.group_steps)]
    stepper.drawing_s = 0.0
    for count in counts:
        drawn.append(stepper.group_ms(epoch, count))
        still.append(stepper.group_ms(epoch, count, fixed))
    epoch_s = sum(ms * count for ms, count in zip(drawn, counts, strict=True)) / 1000
    return {
        **stepper.facts(),
        "images": steps * stepper.config.batch_size,
        "steps_per_group": size.group_steps,
        "epoch_s": round(epoch_s, 2),
        "step_ms": spread(drawn),
        "step_on_one_batch_ms": spread(still),
        "waiting_share": round(1 - statistics.median(still) / statistics.median(drawn), 4),
        "data_share": round(stepper.drawing_s / epoch_s, 4),
    }


def data_verdict(rows: dict[str, Row]) -> Row:
    """The waiting share is what images really cost; the data share is what a run reports of itself."""
    found = {name: row for name, row in rows.items() if row.get("model") == REPORTED}
    return {
        f"{name}: {kind.replace('_', ' ')}": at_most(row[kind], DATA_SHARE)
        for name, row in found.items()
        for kind in ("waiting_share", "data_share")
    }


def at_most(found: float, target: float) -> Row:
    return {"found": round(found, 4), "at_most": target, "met": found <= target}


# Training through the command line: accuracy, presets


def accuracy_cells(size: Size, epochs: int, work: Path) -> dict[str, Cell]:
    options = ["--recipe", "qonstraint-5.9", "--epochs", str(epochs), *written(size.trained)]
    return {f"qonstraint-5.9, {epochs} epochs": partial(training_row, size.data, options, work)}


def accuracy_verdict(rows: dict[str, Row]) -> Row:
    return {
        f"{name}: test top-1": {"found": row["test_top1"], "at_least": TEST_TOP1, "met": row["test_top1"] >= TEST_TOP1}
        for name, row in rows.items()
        if row["model"] == REPORTED
    }


def presets_cells(size: Size, work: Path) -> dict[str, Cell]:
    return {model: partial(training_row, size.data, preset_options(model, size), work) for model in size.presets}


def preset_options(model: str, size: Size) -> list[str]:
    return ["--epochs", str(size.epochs), *written({"batch_size": PRESET_BATCH, **size.trained, "model": model})]


def written(options: Row) -> list[str]:
    return [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def training_row(data: str, options: list[str], work: Path, seconds: float) -> Row | None:
    """Train, or go on, until the run is complete or the time is up."""
    folder, arguments = run_folder(work, options), [data, *options]
    if not is_complete(folder):
        work.mkdir(parents=True, exist_ok=True)
        begun = (folder / RECORD).exists()
        run_qdeploy(["train", *(["--resume", str(folder)] if begun else [*arguments, "--out", str(folder)])], seconds)
    if not is_complete(folder):
        return None
    record = read_json(folder / RECORD)
    results, images = record["results"], record["dataset"]["images"]
    with (folder / "log.csv").open(newline="") as stream:
        log = [{name: float(value) for name, value in line.items()} for line in csv.DictReader(stream)]
    low, high = wilson_interval(results["test_top1"] / 100, images["test"])
    return {
        "train_command": " ".join(["qdeploy train", *arguments]),
        "model": record["config"]["model"],
        "params": record["model"]["params"],
        "amp": record["amp"],
        "dataset": {name: record["dataset"][name] for name in ("name", "sha256", "images")},
        "n": images["test"],
        "test_top1": round(results["test_top1"], 2),
        "test_top1_ci95": [round(100 * low, 2), round(100 * high, 2)],
        **{name: results[name] for name in ("val_top1", "best_epoch", "best_weights", "seconds", "images_per_s")},
        **{name: results[name] for name in ("data_share", "peak_memory_bytes")},
        "epoch_train_s": spread([line["train_s"] for line in log]),
        "log": log,
    }


def run_folder(work: Path, options: list[str]) -> Path:
    """A run with other options is another run."""
    return work / "_".join(text.removeprefix("--") for text in options)


def is_complete(folder: Path) -> bool:
    return (folder / RECORD).exists() and not read_json(folder / RECORD)["interrupted"]


def run_qdeploy(arguments: list[str], seconds: float) -> None:
    """Run a command for at most so long; then it is asked to end, and leaves a checkpoint.

    Raises:
        RuntimeError: If it fails; it has said why.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "qdeploy", *arguments],
        stdout=sys.stderr,
        start_new_session=True,  # Ctrl-C reaches it through here, once
    )
    try:
        code = process.wait(max(1.0, seconds))
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as stop:
        process.send_signal(signal.SIGINT)
        process.wait()
        if isinstance(stop, KeyboardInterrupt):
            raise
        return
    if code:
        raise RuntimeError(f"qdeploy {arguments[0]} ended with exit code {code}")


# Ablations


def ablation_cells(name: str, size: Size) -> dict[str, Cell]:
    model, epochs, variants = ablation.SETS[name]
    if size.variants:
        model, epochs = size.trained["model"], size.epochs
    chosen = list(variants.items())[: size.variants]
    return {
        f"{label}, seed {seed}": partial(ablation_row, label, {**fields, "model": model, "epochs": epochs}, seed, size)
        for seed in range(size.seeds)
        for label, fields in chosen
    }


def ablation_row(label: str, fields: Row, seed: int, size: Size, _: float) -> Row:
    config = config_from_recipe(**{**fields, "seed": seed})
    begin = perf_counter()
    values = ablation.one_run(config, test_split(size.data))
    return {
        "variant": label,
        "seed": seed,
        "model": config.model,
        "epochs": config.epochs,
        **values,
        "seconds": round(perf_counter() - begin, 1),
    }


@cache
def test_split(data: str) -> Split:
    return load_dataset(data).splits["test"]


def ablation_summary(rows: dict[str, Row]) -> Row:
    labels = dict.fromkeys(row["variant"] for row in rows.values())
    return {label: ablation.row(label, [r for r in rows.values() if r["variant"] == label]) for label in labels}


# Engines


def engine_cells(size: Size, work: Path) -> dict[str, Cell]:
    builders: dict[str, Callable[[Path], Row]] = {
        "tensorrt": partial(build_with_library, "tensorrt"),
        "tensorrt_rtx": partial(build_with_library, "tensorrt_rtx"),
        "trtexec": build_with_trtexec,
    }
    return {
        f"{name}, {file}": partial(engine_row, build, file, size, work)
        for name, build in builders.items()
        for file in ("model.fp32.onnx", "model.int8.tensorrt.onnx")
    }


def engine_row(build: Callable[[Path], Row], file: str, size: Size, work: Path, seconds: float) -> Row | None:
    model, export = size.presets[0], work / "engine_export"
    run = run_folder(work, preset_options(model, size))
    if not is_complete(run):  # an engine's size and speed do not depend on how well its model is trained
        options = ["--model", model, "--epochs", "1"]
        run = run_folder(work, options)
        if training_row(EMBEDDED, options, work, seconds) is None:
            return None
    if not (export / file).exists():
        run_qdeploy(["export", str(run), "--int8", "--target", "tensorrt", "--out", str(export)], 600)
    return {"model": model, "precision": file.split(".")[1], "onnx_bytes": (export / file).stat().st_size} | build(
        export / file
    )


def build_with_library(name: str, file: Path) -> Row:
    """Build an engine for batches of 1 to 32 with TensorRT's or TensorRT-RTX's Python library."""
    if importlib.util.find_spec(name) is None:
        return {"unavailable": f"the Python library {name} is not installed here"}
    trt = importlib.import_module(name)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    if not builder:
        return {"unavailable": f"{name} {trt.__version__} cannot build here"}
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(file.read_bytes()):
        return {"library": f"{name} {trt.__version__}", "refused": parser.get_error(0).desc()}
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    height, width, colours = network.get_input(0).shape[1:]
    profile.set_shape("image", *((batch, height, width, colours) for batch in (1, 1, 32)))
    config.add_optimization_profile(profile)
    begin = perf_counter()
    plan = builder.build_serialized_network(network, config)
    return {
        "library": f"{name} {trt.__version__}",
        "built": plan is not None,
        "engine_bytes": plan.nbytes if plan is not None else None,
        "build_s": round(perf_counter() - begin, 2),
        "n": 1,
    }


def build_with_trtexec(file: Path) -> Row:
    """Build and time an engine with TensorRT's own tool."""
    if shutil.which("trtexec") is None:
        return {"unavailable": "the tool trtexec is not installed here"}
    command = ["trtexec", f"--onnx={file.name}", "--shapes=image:1x64x64x3", "--stronglyTyped", "--duration=5"]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, timeout=300)
    kept = ("Throughput:", "Latency:", "GPU Compute Time:", "Engine built in")
    lines = [line.partition("[I] ")[2] for line in done.stdout.splitlines() if any(word in line for word in kept)]
    return {"command": " ".join(command), "exit_code": done.returncode, "lines": lines}


# A piece from its name to its file

NEEDED = {"accuracy": ("matplotlib",), "presets": ("matplotlib",), "engines": ("onnx", "onnxscript", "matplotlib")}
"""Libraries that a piece needs late, and looks for first."""


def cells_of(piece: str, size: Size, epochs: int, work: Path) -> dict[str, Cell]:
    makers: dict[str, Callable[[], dict[str, Cell]]] = {
        "speed": lambda: speed_cells(size),
        "data": lambda: data_cells(size),
        "accuracy": lambda: accuracy_cells(size, epochs, work),
        "precision": lambda: precision_cells(size),
        "engines": lambda: engine_cells(size, work),
        "presets": lambda: presets_cells(size, work),
        "ablation-recipes": lambda: ablation_cells("recipes", size),
        "ablation-without": lambda: ablation_cells("without", size),
    }
    return makers[piece]()


def facts_of(piece: str, rows: dict[str, Row]) -> Row:
    """What a piece's rows come to."""
    if piece.startswith("ablation"):
        return {"variants": ablation_summary(rows)}
    verdicts = {"speed": speed_verdict, "data": data_verdict, "accuracy": accuracy_verdict}
    return {"targets": verdicts[piece](rows)} if piece in verdicts else {}


def run_piece(results: Results, cells: dict[str, Cell], limit_s: float) -> int:
    """Make the rows that are missing; at least one is tried, however short the time."""
    deadline, tried, failed = time.monotonic() + limit_s, 0, 0
    results.rows = {name: row for name, row in results.rows.items() if name in cells}
    results.keep("begun", **facts_of(results.piece, results.rows))
    for name, cell in cells.items():
        if name in results.rows:
            print(f"{results.piece}: {name}: was there")
            continue
        left = deadline - time.monotonic()
        if tried and left <= 0:
            return CUT_OFF
        tried += 1
        try:
            row = cell(left)
        except (RuntimeError, OSError, QdeployError) as error:
            failed += 1
            print(f"{results.piece}: {name}: failed: {one_line(error)}")
            continue
        if row is None:
            return CUT_OFF
        results.rows[name] = row
        print(f"{results.piece}: {name}: {shown(row)}")
        results.keep("begun", **facts_of(results.piece, results.rows))
    if failed:
        return 1
    facts = facts_of(results.piece, results.rows)
    results.keep("complete", **facts)
    for what, target in facts.get("targets", {}).items():
        print(f"{results.piece}: {what}: {target}")
    return 0


def shown(row: Row) -> str:
    hidden = ("log", "dataset", "train_command", "paper_p100")
    return ", ".join(f"{name} {value}" for name, value in row.items() if name not in hidden)


def one_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def interrupt(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("piece")
    parser.add_argument("out", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--limit-s", type=float, default=420.0)
    parser.add_argument("--epochs", type=int, help="of the accuracy run")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU at a tiny size")
    given = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    if given.dry_run == torch.cuda.is_available():
        print(f"{given.piece}: " + ("a dry run hides the GPU itself" if given.dry_run else "there is no CUDA device"))
        return 1
    missing = [name for name in NEEDED.get(given.piece, ()) if importlib.util.find_spec(name) is None]
    if missing:
        print(f"{given.piece}: the library {missing[0]} is missing here: pip install 'qdeploy[train]'")
        return 1
    size = TINY if given.dry_run else REAL
    try:
        cells = cells_of(given.piece, size, given.epochs or size.epochs, given.work)
        return run_piece(Results(given.piece, given.out, given.dry_run), cells, given.limit_s)
    except KeyboardInterrupt:
        return INTERRUPTED
    except ImportError as error:
        print(f"{given.piece}: the library {error.name} is missing here")
        return 1


if __name__ == "__main__":
    sys.exit(main())
