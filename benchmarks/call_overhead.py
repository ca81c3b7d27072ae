"""What `classifier(image)` costs beyond the bare run of ONNX Runtime, for a decoded image of the model's size.

    python benchmarks/call_overhead.py [ROUNDS]

All run in turn in one process, ten calls at a time, on the model in the package. A row gives the median of each,
and the median over the rounds of the difference of their medians with its bootstrapped 95 % interval. The bare run is
that of ONNX Runtime's Python binding. The overhead is preprocessing (checks, conversion, resizing where the size
differs), checks of the array, and the answer's object.
"""

from __future__ import annotations

import qdeploy  # isort: skip  # first: it switches off the usage events of onnxruntime

import sys
import time
from collections.abc import Callable

import numpy as np
from machine import keep
from PIL import Image

from qdeploy.runtime.engines.onnxruntime_binding import open_binding

BLOCK = 10
WARMUP = 200
BOOTSTRAPS = 2000


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    classifier = qdeploy.load()
    session = open_binding(classifier.artifact.data, threads=1, target=classifier.card.target)
    pixels = classifier.card.goldens.images[0].copy()
    batch, image = pixels[None], Image.fromarray(pixels)
    calls: dict[str, Callable[[], object]] = {
        "session.run": lambda: session.run(["logits", "probabilities"], {"image": batch}),
        "classifier(PIL image)": lambda: classifier(image),
        "classifier(uint8 array)": lambda: classifier(pixels),
    }
    for call in calls.values():
        for _ in range(WARMUP):
            call()
    medians: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            medians[name].append(float(np.median([timed(call) for _ in range(BLOCK)])))
    base = np.asarray(medians["session.run"])
    rows = []
    for name, values in medians.items():
        extra = np.asarray(values) - base
        draws = np.median(np.random.default_rng(0).choice(extra, (BOOTSTRAPS, rounds)), axis=1)
        rows.append(
            {
                "call": name,
                "median_ms": round(float(np.median(values)), 4),
                "overhead_ms": round(float(np.median(extra)), 4),
                "ci95_ms": [round(float(v), 4) for v in np.percentile(draws, [2.5, 97.5])],
                "n": rounds * BLOCK,
            }
        )
    keep("call_overhead", rows, threads=1, batch=1)


def timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - begin) / 1e6


if __name__ == "__main__":
    main()
