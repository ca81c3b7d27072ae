"""What users of other tools get: their INT8 recipes beside ours, on one float graph and the same images.

    python benchmarks/int8_peers.py [--model FILE.onnx] [--memory] [--out NAME]

Every recipe quantizes the same fp32 file (the shipped nano, or any other with a qdeploy card and these classes) with
the same images of the embedded training split, in a fresh process, whose peak memory is read before, with its imports
and images in memory, and after; its seconds leave the imports out. All of them calibrate with ONNX Runtime on all
cores. Ours are the whole INT8 step of `qdeploy export --int8`: calibration, choice of the method, the float search
with their timing, and the checks of the result.

All files are then opened in one process: top-1 on the 10,000 published test images (if they are on the machine, else
on the embedded 1,000; of equal logits the first counts), the paired difference to fp32, and the latency of batch 1 on
one thread, in blocks that take turns with fp32. `x fp32` is the median ratio of the blocks.

NNCF is measured if it is installed (`pip install nncf`). Optimum's configuration is written here with ONNX Runtime's
API, which Optimum calls: installing it would change nothing but the imports. `--memory` also measures the calibration
alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from int8_recipes import CALIBRATIONS, RECIPES, Facts, Pixels, Plain, fresh, last_line, logits_of
from machine import keep
from numpy.typing import NDArray

from qdeploy.bench import compare, sample_images, time_rounds
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.card import Card
from qdeploy.core.errors import DataError
from qdeploy.core.machine import versions
from qdeploy.core.metrics import Floats, paired_difference, percentile, sqnr_db
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset, Split
from qdeploy.data.fashion_mnist import local_folder

MEMORY_IMAGES = 512
FP32 = "fp32"


def with_images(folder: Path, dataset: Dataset, count: int) -> Path:
    """Make a folder with the images that a job reads; a count always gives the same ones."""
    from qdeploy.export.int8.calibrate import choose_images
    from qdeploy.export.int8.step import CALIBRATION_SEED

    images, val = choose_images(dataset, count, CALIBRATION_SEED), dataset.splits["val"]
    folder.mkdir()
    np.savez(folder / "images.npz", images=images.pixels, val_images=val.pixels, val_labels=val.labels)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SHIPPED / "model.fp32.onnx", help="float file with a card")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES), metavar="NAME")
    parser.add_argument("--images", type=int, default=300, help="training images to calibrate with")
    parser.add_argument("--test", type=int, default=10_000, help="most test images")
    parser.add_argument("--runs", type=int, default=2000, help="timed runs of each file")
    parser.add_argument("--memory", action="store_true", help=f"also calibrate alone, on {MEMORY_IMAGES} images")
    parser.add_argument("--out", default="int8_peers", help="name of the results' file")
    arguments = parser.parse_args()
    card = read_artifact(arguments.model).card
    dataset = load_dataset(preprocessing=card.preprocessing)
    if card.labels != dataset.classes:
        raise DataError(f"{arguments.model} has other classes than {dataset.name}: it cannot be measured here")
    test, source = test_images(card, dataset, arguments.test)
    with tempfile.TemporaryDirectory() as place:
        rows = compared(arguments, card, dataset, test, Path(place))
        alone = calibrated_alone(arguments.model, dataset, Path(place)) if arguments.memory else None
    facts = {
        "model": card.name,
        "threads": 1,
        "batch": 1,
        "timed_runs": rows[0]["timed_runs"],
        "calibration_images": arguments.images,
        "test_images": f"{len(test)} of {source}",
        "peers": versions("nncf", "onnxruntime"),
    }
    if alone:
        facts = {**facts, "calibration_alone_images": MEMORY_IMAGES, "calibration_alone": alone}
    keep(arguments.out, rows, **facts)
    print(f"{table(rows)}\n{json.dumps(facts)}")


def test_images(card: Card, dataset: Dataset, most: int) -> tuple[Split, str]:
    """Give the published test images if they are on the machine, else the embedded ones; none is calibrated with."""
    full = load_dataset("fashion-mnist", card.preprocessing) if local_folder() else dataset
    test = full.splits["test"]
    return test.take(np.arange(min(most, len(test)), dtype=np.int64)), full.name


def compared(
    arguments: argparse.Namespace, card: Card, dataset: Dataset, test: Split, place: Path
) -> list[dict[str, Any]]:
    """Make every recipe's file, and measure all of them."""
    data = arguments.model.read_bytes()
    rows: list[dict[str, Any]] = [{"recipe": FP32, "words": FP32, "kB": round(len(data) / 1e3)}]
    sessions: dict[str, Plain] = {FP32: Plain(data)}
    logits = {FP32: logits_of(sessions[FP32], test.pixels)}
    for name in arguments.recipes:
        folder = with_images(place / name, dataset, arguments.images)
        row = {"recipe": name, "words": RECIPES[name].words, **fresh(name, arguments.model, folder)}
        rows.append(row)
        if "note" not in row:
            opened(row, folder / "int8.onnx", sessions, logits, test.pixels)
        print(row, file=sys.stderr, flush=True)
    for row in rows:
        if row["recipe"] in logits:
            row.update(accuracy(logits[row["recipe"]], logits[FP32], test.labels))
    add_speed(rows, sessions, card, arguments.runs)
    return rows


def opened(
    row: dict[str, Any], file: Path, sessions: dict[str, Plain], logits: dict[str, Floats], pixels: Pixels
) -> None:
    """Open and run a file; one that ONNX Runtime refuses gets a note."""
    name, data = row["recipe"], file.read_bytes()
    row["kB"] = round(len(data) / 1e3)
    try:
        session = Plain(data)
        logits[name] = logits_of(session, pixels)
        sessions[name] = session
    except Exception as error:  # its exception types have no common base of their own
        reason = last_line(str(error)).rpartition(" was false. ")[2]
        row["note"] = f"does not run in ONNX Runtime: {reason[:160]}"


def accuracy(new: Floats, old: Floats, labels: NDArray[np.int64]) -> Facts:
    difference, noise = paired_difference(new, old, labels), sqnr_db(old, new)
    return {
        "top1": round(float((new.argmax(1) == labels).mean() * 100), 2),
        "difference": round(difference.points, 2),
        "margin95": round(difference.margin95, 2),
        "sqnr_db": round(noise, 1) if np.isfinite(noise) else None,
    }


def add_speed(rows: list[dict[str, Any]], sessions: dict[str, Plain], card: Card, runs: int) -> None:
    """Time all files in turn."""
    inputs = [sample_images(card.preprocessing)] * len(sessions)
    rounds = dict(zip(sessions, time_rounds(list(sessions.values()), inputs, runs, seconds=120.0), strict=True))
    for row in rows:
        mine = rounds.get(row["recipe"])
        if mine is None:
            continue
        ratio = compare(row["recipe"], FP32, mine, rounds[FP32])
        times = [t for block in mine for t in block]
        row["p50_ms"] = round(percentile(times, 50), 4)
        row["x_fp32"], row["x_fp32_ci95"] = round(ratio.ratio, 3), [round(v, 3) for v in ratio.ci95]
        row["timed_runs"] = len(times)


def calibrated_alone(source: Path, dataset: Dataset, place: Path) -> list[dict[str, Any]]:
    """Give seconds and peak memory of the calibrators, each in a fresh process."""
    rows = []
    for name, recipe in CALIBRATIONS.items():
        folder = with_images(place / name, dataset, MEMORY_IMAGES)
        rows.append({"calibration": recipe.words, **fresh(name, source, folder)})
        print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Give the rows as a Markdown table."""
    head = ("recipe", "top-1", "diff to fp32", "SQNR dB", "p50 ms", "x fp32", "seconds", "before MB", "peak MB")
    lines = [head, ("---",) * len(head), *(cells(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    def text(key: str) -> str:
        return "" if row.get(key) is None else str(row[key])

    if "note" in row:
        return (row["words"], row["note"], *("" for _ in range(4)), *map(text, ("seconds", "before_MB", "peak_MB")))
    fp32 = row["recipe"] == FP32
    difference = "" if fp32 else f"{row['difference']:+.2f} +- {row['margin95']:.2f}"
    low, high = row["x_fp32_ci95"]
    ratio = "1" if fp32 else f"{row['x_fp32']:.2f} [{low:.2f}, {high:.2f}]"
    numbers = map(text, ("seconds", "before_MB", "peak_MB"))
    return (row["words"], f"{row['top1']:.2f}", difference, text("sqnr_db"), f"{row['p50_ms']:.3f}", ratio, *numbers)


if __name__ == "__main__":
    main()
