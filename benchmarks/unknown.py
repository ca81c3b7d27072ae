"""What a model calls unknown: which score tells images of other things best, and what gets through.

    python benchmarks/unknown.py [--icons FOLDER]

The model in the package, fp32 and INT8, answers the 10,000 test images of Fashion-MNIST and images that show none of
its classes (benchmarks/held_out.py asks the same of other models, and of clothes that they were not trained on).
Scores: the largest probability (the baseline that everyone uses), the largest logit, and the energy at the file's
temperature; `unknown` is the share below the threshold that 95 % of the validation images reach. Intervals are 95 %
bootstrap intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from machine import keep
from numpy.typing import NDArray

from qdeploy.checks.confidence import told_apart
from qdeploy.core.artifact import SHIPPED, Artifact, read_artifact
from qdeploy.core.errors import ImageError
from qdeploy.core.metrics import Floats
from qdeploy.core.reliability import log_softmax, scores_of
from qdeploy.data.catalog import load_dataset
from qdeploy.export.confidence import Labelled, confidence_of
from qdeploy.export.graph.parity import run_session
from qdeploy.runtime.session import open_session

COVERAGE = 0.95
COUNT = 500
Pixels = NDArray[np.uint8]
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--icons", type=Path, help="a folder of drawings and icons as PNG")
    given = parser.parse_args()
    dataset = load_dataset("fashion-mnist")
    test = np.asarray(dataset.splits["test"].pixels)
    rows = []
    for precision in ("fp32", "int8"):
        artifact = read_artifact(SHIPPED / f"model.{precision}.onnx")
        others = dict(other_images(test, given.icons, artifact))
        rows += measured(artifact, "nano in the package", dataset.splits, others)
    keep("unknown", rows, coverage=COVERAGE)
    print_table(rows)


def other_images(test: Pixels, icons: Path | None, artifact: Artifact) -> Iterator[tuple[str, Pixels]]:
    """Yield images that show no clothes, or not as the model has seen them."""
    rng, size = np.random.default_rng(0), artifact.card.preprocessing.size
    yield "noise", rng.integers(0, 256, (COUNT, size, size, 3), np.uint8)
    blocks = rng.integers(0, 256, (COUNT, 8, 8, 3), np.uint8)
    yield "coloured blocks", blocks.repeat(size // 8, 1).repeat(size // 8, 2)
    yield "blank, every grey", np.tile(np.arange(256, dtype=np.uint8)[:, None, None, None], (1, size, size, 3))
    yield "inverted", 255 - test[: 4 * COUNT]
    yield "upside down", np.ascontiguousarray(test[: 4 * COUNT, ::-1])
    if icons is not None:
        yield "icons and drawings", np.stack(list(icons_of(icons, artifact)))


def icons_of(folder: Path, artifact: Artifact) -> Iterator[Pixels]:
    """Yield the readable images of a folder as the model takes them."""
    for path in sorted(folder.rglob("*.png"))[: 4 * COUNT]:
        try:
            yield artifact.card.preprocessing(path)
        except ImageError:
            continue


def measured(artifact: Artifact, name: str, splits: Any, others: dict[str, Pixels]) -> list[Row]:
    """Fit a file's confidence on the validation images and measure it on others."""
    session, (val, test) = open_session(artifact), (splits["val"], splits["test"])
    inside = run_session(session, np.asarray(test.pixels))
    fitted = Labelled(logits=run_session(session, np.asarray(val.pixels)), labels=val.labels)
    found, _ = confidence_of(fitted, Labelled(logits=inside, labels=test.labels), artifact.card.labels, COVERAGE)
    assert found.threshold is not None
    same = {"model": name, "precision": artifact.card.precision, "confidence": found.to_dict()}
    rows: list[Row] = []
    for kind, pixels in others.items():
        outside = run_session(session, pixels)
        unknown = scores_of(outside, found.temperature) < found.threshold
        told = {k: asdict(told_apart(a, b)) for k, a, b in scores(inside, outside, found.temperature)}
        rows.append({**same, "others": kind, "n": len(pixels), "unknown": round(float(unknown.mean()), 4), **told})
    return rows


def scores(inside: Floats, outside: Floats, temperature: float) -> Iterator[tuple[str, Any, Any]]:
    """Yield each score of both kinds of images."""
    yield "probability", *(log_softmax(z, temperature).max(axis=1) for z in (inside, outside))
    yield "logit", *(z.max(axis=1).astype(np.float64) for z in (inside, outside))
    yield "energy", *(scores_of(z, temperature) for z in (inside, outside))


def print_table(rows: list[Row]) -> None:
    """Print a Markdown table."""
    print("| model | images | n | AUROC: probability | largest logit | energy | unknown |\n" + "| --- " * 7 + "|")
    for r in rows:
        cells = [f"{r[k]['auroc']:.3f}" for k in ("probability", "logit", "energy")]
        name = f"{r['model']}, {r['precision']}"
        print(f"| {name} | {r['others']} | {r['n']} | {' | '.join(cells)} | {r['unknown']:.1%} |")


if __name__ == "__main__":
    main()
