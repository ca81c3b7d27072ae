"""Compare the answers of model files on an emulated ARM64 CPU with those of this computer; `make test-arm` runs it.

The same script runs twice: with this computer's Python and ``--write``, then with the emulated one and ``--compare``,
which needs no pytest. The exit code is 1 if an answer is off.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import Image

from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.errors import QdeployError
from qdeploy.data.embedded import embedded_source
from qdeploy.runtime.classifier import Classifier, ImageLike

EXAMPLES = Path(__file__).parents[2] / "examples"
TEST_IMAGES = 50
LEAST_DB = 40.0
"""Of the goldens: files made with exact kernels reach 42 to 147 dB on ARM; 28 dB is what saturating kernels give."""


class Answers(TypedDict):
    """What a model file answers on one CPU."""

    goldens_db: float
    """Agreement with the goldens in decibels; infinite if equal."""
    labels: list[str]
    """The K labels."""
    probabilities: dict[str, list[float]]
    """By the image's name, the K probabilities."""


def main(words: list[str] | None = None) -> int:
    """Write or compare the answers of model files; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, help="model files; by default the shipped ones")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--write", metavar="FILE", type=Path, help="keep the answers in this JSON file")
    way.add_argument("--compare", metavar="FILE", type=Path, help="compare with the answers in this JSON file")
    given = parser.parse_args(words)
    models = [path.resolve() for path in given.models or sorted(SHIPPED.glob("model.*.onnx"))]
    expected: dict[str, Answers] | None = json.loads(given.compare.read_text()) if given.compare else None
    found: dict[str, Answers] = {}
    faults: list[str] = []
    for model in models:
        try:
            answers = found[str(model)] = answers_of(model)
        except QdeployError as error:
            faults.append(str(error))
            continue
        print(f"{model.name} on {platform.machine()}: goldens {answers['goldens_db']:.1f} dB")
        if answers["goldens_db"] < LEAST_DB:
            faults.append(f"{model}: {answers['goldens_db']:.1f} dB, at least {LEAST_DB:.0f} expected")
        if expected is not None:
            faults += [f"{model}: {fault}" for fault in compared(answers, expected.get(str(model)))]
    if given.write:
        given.write.write_text(json.dumps(found))
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def answers_of(model: Path) -> Answers:
    """Run a model file on its goldens, the example images and test images of the embedded data set.

    Raises:
        QdeployError: If it cannot be opened.
    """
    artifact = read_artifact(model)
    classifier = Classifier(artifact, selftest=False)
    goldens = artifact.card.goldens
    rows, _ = classifier.session.infer_bytes(goldens.pixels, len(goldens.rows))
    images = dict(named_images())
    predictions = classifier(list(images.values()))
    return Answers(
        goldens_db=goldens.sqnr_db(rows),
        labels=list(artifact.card.labels),
        probabilities={name: list(p.scores) for name, p in zip(images, predictions, strict=True)},
    )


def named_images() -> Iterator[tuple[str, ImageLike]]:
    """Yield the images and their names."""
    for path in sorted(EXAMPLES.glob("*.png")):
        yield f"examples/{path.name}", path
    for i, record in enumerate(embedded_source().records["test"][:TEST_IMAGES]):
        yield f"test image {i}", Image.fromarray(np.asarray(record.source))


def compared(answers: Answers, expected: Answers | None) -> Iterator[str]:
    """Print how near answers are to the expected ones; yield which images are of another class."""
    if expected is None:
        yield "there are no answers to compare with; run with --write and the same model files first"
        return
    difference, agreeing = 0.0, 0
    for name, wanted in expected["probabilities"].items():
        found = answers["probabilities"][name]
        difference = max(difference, *(abs(a - b) for a, b in zip(found, wanted, strict=True)))
        agreeing += top(found) == top(wanted)
        if top(found) != top(wanted):
            here, there = (f"{answers['labels'][top(p)]} ({max(p):.1%})" for p in (found, wanted))
            yield f"{name} is {here} here, {there} on the computer compared with"
    count = len(expected["probabilities"])
    print(f"  {agreeing} of {count} images of the same class, max abs probability difference {difference:.5f}")


def top(probabilities: list[float]) -> int:
    """Return the class number of the most probable label."""
    return probabilities.index(max(probabilities))


if __name__ == "__main__":
    sys.exit(main())
