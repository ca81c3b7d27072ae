"""The pieces accuracy and presets: training through the command line."""

from __future__ import annotations

import csv
import signal
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

from campaign.results import Cell, Row, at_most, spread
from campaign.sizes import PRESET_BATCH, REPORTED, Size
from qdeploy.core.files import read_json
from qdeploy.core.intervals import wilson_interval
from qdeploy.core.run_folder import RECORD
from qdeploy.data.places import look_for

PAPER_VAL_TOP1, PAPER_SPREAD, PAPER_MEMORY_GB, PAPER_EPOCH_S = 54.7, 0.2, 9.2, 333
"""The paper's reported run: three runs on 20,000 validation images, on one P100 (paper, III.D and IV.A)."""
PLACES = {
    "tiny-imagenet": ("tiny-imagenet-200", "tiny-imagenet-200.zip"),
    "cifar-10": ("cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
}
"""Names under which the published sets are looked for; nothing is downloaded by the campaign."""
TEST_TOP1 = 94.5
"""What 5.9 is to reach on an H200."""


def accuracy_cells(size: Size, work: Path) -> dict[str, Cell]:
    epochs = size.accuracy_epochs
    options = ["--recipe", "qonstraint-5.9", "--epochs", str(epochs), *written(size.trained)]
    return {f"qonstraint-5.9, {epochs} epochs": partial(training_row, size.data, options, work)}


def accuracy_verdict(rows: dict[str, Row]) -> Row:
    return {
        f"{name}: test top-1": {"found": row["test_top1"], "at_least": TEST_TOP1, "met": row["test_top1"] >= TEST_TOP1}
        for name, row in rows.items()
        if row["model"] == REPORTED
    }


class SkippedError(Exception):
    """A row that cannot be made on this machine."""


def real_cells(data: str, options: list[str], size: Size, work: Path) -> dict[str, Cell]:
    """Rows of a run on a published set, one a seed; skipped where the set is not on this machine."""
    here = size.data if size.variants else data  # a dry run has the embedded images
    if size.variants:
        options = ["--epochs", str(size.epochs), *written(size.trained)]
    return {
        f"{data}, seed {seed}": partial(real_row, here, [*options, "--seed", str(seed)], work)
        for seed in range(size.seeds)
    }


def real_row(data: str, options: list[str], work: Path, seconds: float) -> Row | None:
    if data in PLACES and look_for(data, Path.exists, PLACES[data]) is None:
        raise SkippedError(f"{data} is not on this machine; put {PLACES[data][1]} into ./data")
    return training_row(data, options, work, seconds)


def tiny_imagenet_cells(size: Size, work: Path) -> dict[str, Cell]:
    return real_cells("tiny-imagenet", ["--recipe", "qonstraint-5.9", "--epochs", "70"], size, work)


def cifar_cells(size: Size, work: Path) -> dict[str, Cell]:
    return real_cells("cifar-10", ["--recipe", "mobilevit-thesis", "--amp", "auto"], size, work)


def tiny_imagenet_verdict(rows: dict[str, Row]) -> Row:
    """Compare with the paper: mean and deviation of the validation top-1, memory and the time of an epoch."""
    runs = [row for row in rows.values() if row["model"] == REPORTED]
    if not runs:
        return {}
    values = [row["val_top1"] for row in runs]
    deviation = statistics.stdev(values) if len(values) > 1 else None
    memory, epoch = max(row["peak_memory_bytes"] for row in runs), max(row["epoch_s"] for row in runs)
    return {
        "validation top-1": {
            "found": round(statistics.fmean(values), 2), "std": deviation, "n": len(values),
            "paper": PAPER_VAL_TOP1, "paper_std": PAPER_SPREAD,
        },
        "memory, GB": at_most(memory / 1e9, PAPER_MEMORY_GB),
        "seconds of an epoch": at_most(epoch, PAPER_EPOCH_S),
    }  # fmt: skip


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
        log = [{k: v if k == "events" else float(v) for k, v in line.items()} for line in csv.DictReader(stream)]
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
        **{name: results[name] for name in ("data_share", "peak_memory_bytes", "epoch_s")},
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
