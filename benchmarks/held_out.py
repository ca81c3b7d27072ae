"""Does a model know a class that it was not trained on: one class held out at a time, over models and seeds.

    python benchmarks/held_out.py [--models NAME ...] [--classes N ...] [--seeds N] [--epochs N] [--icons FOLDER]

Each model is trained on the embedded images without one class, and exported to fp32 and INT8. Temperature and threshold
come from its own validation images. Then it answers the 9,000 test images of the full Fashion-MNIST that it knows, the
1,000 of the class that it does not (a near class such as Shirt is the hard case), and images that show no clothes.
Scores and columns are those of benchmarks/unknown.py. Runs that are in the results file are not repeated; a name such
as ``nano+sota`` is the model nano with the head sota.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import RESULTS, keep
from PIL import Image
from unknown import COVERAGE, Row, measured, other_images

from qdeploy.core.artifact import read_artifact
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Split
from qdeploy.data.embedded import embedded_source

NAME = "held_out"
SCORES = ("probability", "logit", "energy")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["nano"], metavar="NAME")
    parser.add_argument("--classes", nargs="+", type=int, default=list(range(10)), metavar="N")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--icons", type=Path, help="a folder of drawings and icons as PNG")
    given = parser.parse_args()
    path = RESULTS / f"{NAME}.json"
    rows: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []
    done = {(r["model"], r["without"], r["seed"]) for r in rows}
    test = load_dataset("fashion-mnist").splits["test"]
    for seed in range(given.seeds):
        for model in given.models:
            for k in given.classes:
                if (model, as_folder(embedded_source().classes[k]), seed) not in done:
                    rows += held_out(model, k, seed, given.epochs, test, given.icons)
                    keep(NAME, rows, coverage=COVERAGE, epochs=given.epochs, train_images=1800)
    print_table(rows)


def held_out(model: str, k: int, seed: int, epochs: int, test: Split, icons: Path | None) -> list[Row]:
    """Train without a class, export, and show the files that class and other images."""
    name, _, head = model.partition("+")
    classes = [as_folder(c) for c in embedded_source().classes]
    known, unknown = test.take(np.flatnonzero(test.labels != k)), test.take(np.flatnonzero(test.labels == k))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_images(folder / "data", k)
        words = ["--epochs", str(epochs), "--seed", str(seed), *(["--set", f"model.head={head}"] if head else [])]
        qdeploy("train", f"{folder}/data", "--model", name, *words, "--out", f"{folder}/run")
        qdeploy("export", f"{folder}/run", "--int8", "--allow-drop", "--allow-slower", "--out", f"{folder}/export")
        for file in sorted((folder / "export").glob("model.*.onnx")):
            artifact = read_artifact(file)
            splits = load_dataset(f"{folder}/data", artifact.card.preprocessing).splits
            places = np.array([artifact.card.labels.index(classes[label]) for label in known.labels])
            others = {classes[k]: unknown.pixels, **dict(other_images(known.pixels, icons, artifact))}
            found = measured(artifact, model, {"val": splits["val"], "test": replace(known, labels=places)}, others)
            rows += [{"without": classes[k], "seed": seed, **row, "confidence": shortened(row)} for row in found]
    return rows


def shortened(row: Row) -> dict[str, Any]:
    """Return what a file's card says of its confidence, without its histograms."""
    return {name: value for name, value in row["confidence"].items() if name != "reference"}


def as_folder(name: str) -> str:
    """Return a class name that can be a folder's."""
    return name.replace("/", "-")


def write_images(folder: Path, k: int) -> None:
    """Write the embedded images of all classes but one as a folder of folders."""
    source = embedded_source()
    for split, records in source.records.items():
        for i, record in enumerate(records):
            if record.label != k:
                place = folder / split / as_folder(source.classes[record.label]) / f"{i}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.asarray(record.source)).save(place)


def qdeploy(*words: str) -> None:
    """Run a command."""
    subprocess.run([sys.executable, "-m", "qdeploy", *words], check=True)


def print_table(rows: list[Row]) -> None:
    """Print means over the runs as a Markdown table, with the standard deviation of the energy's."""
    of: dict[tuple[str, ...], list[Any]] = defaultdict(list)
    for r in rows:
        kind = f"{r['others']}, never seen" if r["others"] == r["without"] else r["others"]
        of[r["model"], r["precision"], kind].append(r)
    print("| model | images | runs | AUROC: probability | largest logit | energy | unknown |\n" + "| --- " * 7 + "|")
    for (model, precision, kind), found in of.items():
        cells = [f"{statistics.fmean(r[s]['auroc'] for r in found):.3f}" for s in SCORES]
        if len(found) > 1:
            cells[-1] += f" ± {statistics.stdev(r['energy']['auroc'] for r in found):.3f}"
        unknown = statistics.fmean(r["unknown"] for r in found)
        print(f"| {model}, {precision} | {kind} | {len(found)} | {' | '.join(cells)} | {unknown:.1%} |")


if __name__ == "__main__":
    main()
