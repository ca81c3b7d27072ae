"""How many planted label errors `qdeploy data --suspects` finds, and how many of those it lists are planted.

    python benchmarks/suspects.py [--data mini|test] [--kind any|near] [--share 0.02] [--model NAME|FILE]
                                  [--folds N] [--epochs N] [--seeds N]

A share of Fashion-MNIST's images gets a wrong label: any other one by chance, or the one that the model in the package
finds most likely besides the right one (as people err: a shirt taken for a T-shirt). The images are written as PNG
files into class folders, or for a model file as the four published files, and the command reads them. mini are the
3,500 embedded images; test the 10,000 official test images, which the model in the package has not seen. A row takes
the place of the one of the same settings in results/suspects.json.

recall: found of the planted; precision: planted of the listed; at_planted: share of planted among as many of the first
as were planted; found_low, found_high: 95 % Wilson interval of recall. Fashion-MNIST has errors of its own, and two of
its classes that people cannot tell apart either: the precision counts what is found of those as wrong.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import RESULTS, keep
from numpy.typing import NDArray
from PIL import Image

from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.files import read_json
from qdeploy.core.intervals import wilson_interval
from qdeploy.core.metrics import Floats
from qdeploy.data.catalog import find_place
from qdeploy.data.embedded import NAME as EMBEDDED
from qdeploy.data.source import Record
from qdeploy.runtime.session import open_session

Labels = NDArray[np.int64]
SETTINGS = ("data", "kind", "model", "folds", "epochs", "seed")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", choices=("mini", "test"), default="mini")
    parser.add_argument("--kind", choices=("any", "near"), default="any")
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--folds", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    source = find_place(EMBEDDED if given.data == "mini" else "fashion-mnist").read()
    parts = source.records.values() if given.data == "mini" else [source.records["test"]]
    records = [record for part in parts for record in part]
    names = [name.replace("/", "-") for name in source.classes]
    for seed in range(given.seeds):
        labels = np.asarray([r.label for r in records])
        with tempfile.TemporaryDirectory() as folder:
            planted = plant(records, labels, given.share, given.kind, seed)
            if Path(given.model).is_file():
                few = [r for k in range(10) for r in [t for t in source.records["train"] if t.label == k][:2]]
                write_published(records, labels, few, Path(folder))
            else:
                write_folders(records, labels, names, Path(folder))
            row = {**measured(Path(folder), planted, given), "kind": given.kind, "seed": seed}
        row["data"] = f"Fashion-MNIST {given.data}"
        row["command"] = " ".join(["python", *sys.argv])
        keep("suspects", sorted([*others_than(row), row], key=lambda r: [str(r[k]) for k in SETTINGS]))


def others_than(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of before that have other settings."""
    file = RESULTS / "suspects.json"
    rows = read_json(file)["rows"] if file.is_file() else []
    return [r for r in rows if any(r[k] != row[k] for k in SETTINGS)]


def plant(records: list[Record], labels: Labels, share: float, kind: str, seed: int) -> set[str]:
    """Give some images a wrong label, in place; return the names of their files."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(labels), round(share * len(labels)), replace=False)
    for i in chosen.tolist():
        others = [k for k in range(10) if k != labels[i]]
        labels[i] = rng.choice(others) if kind == "any" else max(others, key=probabilities(records[i]).__getitem__)
    return {str(i) for i in chosen.tolist()}


def probabilities(record: Record) -> Floats:
    artifact = read_artifact(SHIPPED / "model.fp32.onnx")
    rules = artifact.card.preprocessing
    with open_session(artifact, selftest=False) as session:
        return np.array(session.infer(rules.resize(rules.open(record.image()))[None])[1][0])


def write_folders(records: list[Record], labels: Labels, names: list[str], folder: Path) -> None:
    for i, (record, label) in enumerate(zip(records, labels.tolist(), strict=True)):
        (folder / names[label]).mkdir(exist_ok=True)
        Image.fromarray(np.asarray(record.source)).save(folder / names[label] / f"{i}.png")


def write_published(records: list[Record], labels: Labels, few: list[Record], folder: Path) -> None:
    """Write the four files, with their names of classes, which no folder can have; there must be training images."""
    parts = {"t10k": (records, labels), "train": (few, np.asarray([r.label for r in few]))}
    for stem, (part, given) in parts.items():
        pixels_NSS = np.stack([np.asarray(r.source) for r in part])
        for kind, values in (("images-idx3", pixels_NSS), ("labels-idx1", given.astype(np.uint8))):
            head = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
            (folder / f"{stem}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes(), 1))


def measured(folder: Path, planted: set[str], given: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "qdeploy", "data", str(folder), "--suspects", "--json", "--model", given.model]
    for option in ("folds", "epochs"):
        if (value := getattr(given, option)) is not None:
            command += [f"--{option}", str(value)]
    begin = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)["suspects"]
    listed = [Path(s["image"]).stem in planted for s in found["suspects"]]
    recall = sum(listed) / len(planted)
    low, high = wilson_interval(recall, len(planted))
    return {
        "model": Path(given.model).name,
        "folds": given.folds,
        "epochs": given.epochs,
        "n": found["n"],
        "planted": len(planted),
        "listed": len(listed),
        "recall": recall,
        "found_low": low,
        "found_high": high,
        "precision": sum(listed) / max(1, len(listed)),
        "at_planted": sum(listed[: len(planted)]) / len(planted),
        "estimated": found["estimated_errors"],
        "top1": found["top1"],
        "seconds": time.perf_counter() - begin,
    }


if __name__ == "__main__":
    main()
