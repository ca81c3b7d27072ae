"""Whether answers that differ from those to the validation images are noticed, and how often others raise an alarm.

    python benchmarks/drift.py [--icons FOLDER]

The model in the package, fp32 and INT8. False alarms: servers that answer images drawn from the validation images, and
test images, which had no part in anything; as folders, of which each is judged once, and as streams in windows. Found:
the share of windows of 500 answers that differ where all or some of the images are of another kind, or where a class
has become more frequent or is missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import keep
from numpy.typing import NDArray
from unknown import other_images

from qdeploy.core.artifact import SHIPPED, Artifact, read_artifact
from qdeploy.core.drift import FALSE_ALARMS, WINDOW, DriftWatch, Tally
from qdeploy.core.reliability import log_softmax, scores_of
from qdeploy.data.catalog import load_dataset
from qdeploy.export.confidence import confidence_images
from qdeploy.export.graph.parity import run_session
from qdeploy.runtime.session import open_session

SERVERS = 400
LIFE = 20
"""Windows that a server lives."""
FOLDERS = 1000
Row = dict[str, Any]


@dataclass(frozen=True)
class Answers:
    """What a model gives for some images."""

    score: NDArray[np.float64]
    confidence: NDArray[np.float64]
    index: NDArray[np.int64]

    def some(self, which: NDArray[Any]) -> list[tuple[float, float, int]]:
        """Return the answers of these places."""
        columns = (self.score[which].tolist(), self.confidence[which].tolist(), self.index[which].tolist())
        return list(zip(*columns, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--icons", type=Path, help="a folder of drawings and icons as PNG")
    given = parser.parse_args()
    dataset = load_dataset("fashion-mnist")
    rows: list[Row] = []
    for precision in ("fp32", "int8"):
        artifact = read_artifact(SHIPPED / f"model.{precision}.onnx")
        rows += measured(artifact, dataset.splits, given.icons)
    keep("drift", rows, window=WINDOW, false_alarms=FALSE_ALARMS)
    for r in rows:
        print(f"| {r['precision']} | {r['what']} | {r['images']} | {r['alarms']} of {r['of']} | {r['psi']:.2f} |")


def measured(artifact: Artifact, splits: Any, icons: Path | None) -> Iterator[Row]:
    """Yield the share of alarms for each kind of images."""
    session, rng = open_session(artifact), np.random.default_rng(0)
    temperature = artifact.card.temperature

    def answers(pixels: NDArray[np.uint8]) -> Answers:
        logits = run_session(session, pixels)
        confidence = np.exp(log_softmax(logits, temperature)).max(axis=1)
        return Answers(scores_of(logits, temperature), confidence, logits.argmax(axis=1))

    def row(what: str, images: str, alarms: int, of: int, psi: float) -> Row:
        same = {"precision": artifact.card.precision, "what": what, "images": images}
        return {**same, "alarms": alarms, "of": of, "psi": round(psi, 4)}

    val, pixels = confidence_images(splits["val"]), np.asarray(splits["test"].pixels)
    labels = splits["test"].labels
    known, test = answers(np.asarray(val.pixels)), answers(pixels)
    for kind, pool in (("validation images, drawn anew", known), ("test images", test)):
        yield row(f"servers of {LIFE} windows", kind, *streams(artifact, pool, rng))
        for size in (100, 500, 2000):
            found = [judged(artifact, pool.some(rng.integers(0, len(pool.index), size))) for _ in range(FOLDERS)]
            yield row(f"folders of {size}", kind, *summed(found))
    everything = np.arange(len(labels))

    def windows(draw: Any, pool: Answers) -> tuple[int, int, float]:
        return summed([judged(artifact, pool.some(draw())) for _ in range(200)])

    for kind, others in other_images(pixels, icons, artifact):
        found = answers(others)
        yield row("windows", kind, *windows(lambda f=found: rng.integers(0, len(f.index), WINDOW), found))
        both = Answers(
            *(np.concatenate((getattr(test, n), getattr(found, n))) for n in ("score", "confidence", "index"))
        )
        for share in (0.1, 0.3):
            n = round(share * WINDOW)
            draw = lambda n=n, f=found: np.concatenate(  # noqa: E731
                (rng.choice(everything, WINDOW - n), len(labels) + rng.integers(0, len(f.index), n))
            )
            yield row("windows", f"{share:.0%} {kind}, else test images", *windows(draw, both))
    for times in (0, 2, 3, 5):
        found = []
        for k in range(len(artifact.card.labels)):
            weights = np.where(labels == k, times, 1).astype(float)
            draws = [rng.choice(everything, WINDOW, p=weights / weights.sum()) for _ in range(20)]
            found += [judged(artifact, test.some(d)) for d in draws]
        what = f"test images, a class {times} times as often" if times else "test images, a class missing"
        yield row("windows", what, *summed(found))


def streams(artifact: Artifact, pool: Answers, rng: np.random.Generator) -> tuple[int, int, float]:
    """Let servers answer; return how many ever raised an alarm, of how many, and the largest index of the last."""
    assert artifact.card.reference is not None
    alarmed, most = 0, 0.0
    for _ in range(SERVERS):
        watch = DriftWatch(artifact.card.reference, artifact.card.labels)
        for answer in pool.some(rng.integers(0, len(pool.index), WINDOW * LIFE)):
            watch.add(*answer)
        alarmed += watch.alarms > 0
        assert watch.latest is not None
        most = max(most, *(part.psi for part in watch.latest.parts.values()))
    return alarmed, SERVERS, most


def judged(artifact: Artifact, answers: list[tuple[float, float, int]]) -> tuple[bool, float]:
    """Return whether some answers differ in one look, and the largest index."""
    assert artifact.card.reference is not None
    tally = Tally(artifact.card.reference)
    for answer in answers:
        tally.add(*answer)
    verdict = tally.verdict(artifact.card.labels)
    assert verdict is not None
    return verdict.differs, max(part.psi for part in verdict.parts.values())


def summed(found: list[tuple[bool, float]]) -> tuple[int, int, float]:
    """Return the alarms, their possible number, and the median index."""
    return sum(differs for differs, _ in found), len(found), float(np.median([psi for _, psi in found]))


if __name__ == "__main__":
    main()
