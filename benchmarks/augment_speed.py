"""Speed of the augmentation on one CPU thread, per regime, phase and batch size, in turn.

    taskset -c 1 env OMP_NUM_THREADS=1 python benchmarks/augment_speed.py [ROUNDS]

From uint8 [B, 64, 64, 3] to float32 channels-last, all choices included. ``flip_and_shift`` with ``normalise``, which
the small recipe uses, is the floor.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter_ns

import torch
from machine import keep
from torch import Tensor

from qdeploy.training.augment import REGIMES, augment, flip_and_shift, normalise

SIZE = 64
BATCHES = (64, 256)
IMAGES_PER_ROUND = 512
Step = Callable[[Tensor], Tensor]


def steps() -> dict[tuple[str, int], Step]:
    """What is timed, by regime and phase."""
    generator = torch.Generator().manual_seed(0)
    half = torch.full((3,), 0.5)

    def floor(pixels: Tensor) -> Tensor:
        return normalise(flip_and_shift(pixels, flip=True, max_shift=4, generator=generator), half, half)

    timed: dict[tuple[str, int], Step] = {("flip and shift", 0): floor}
    for regime, phases in REGIMES.items():
        for phase, strength in enumerate(phases, start=1):
            timed[regime, phase] = partial(augment, strength=strength, generator=generator)
    return timed


def time_per_image_ms(step: Step, pixels: Tensor) -> float:
    repeats = IMAGES_PER_ROUND // len(pixels)
    begin = perf_counter_ns()
    for _ in range(repeats):
        step(pixels)
    return (perf_counter_ns() - begin) / 1e6 / (repeats * len(pixels))


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    torch.set_num_threads(1)
    batches = {b: torch.randint(0, 256, (b, SIZE, SIZE, 3), dtype=torch.uint8) for b in BATCHES}
    cases = {(*key, b): (step, pixels) for b, pixels in batches.items() for key, step in steps().items()}
    times: dict[tuple[str, int, int], list[float]] = {case: [] for case in cases}
    for step, pixels in cases.values():  # warm-up
        time_per_image_ms(step, pixels)
    for _ in range(rounds):
        for case, (step, pixels) in cases.items():
            times[case].append(time_per_image_ms(step, pixels))
    rows = []
    for (regime, phase, batch), values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        rows.append(
            {
                "regime": regime,
                "phase": phase or None,
                "batch": batch,
                "n": rounds,
                "images_per_s": round(1000 / median),
                "median_ms_per_image": round(median, 4),
                "quartiles_ms": [round(low, 4), round(high, 4)],
                "min_ms": round(min(values), 4),
                "max_ms": round(max(values), 4),
            }
        )
    keep("augment_speed", rows, threads=1, size=SIZE, images_per_round=IMAGES_PER_ROUND)


if __name__ == "__main__":
    main()
