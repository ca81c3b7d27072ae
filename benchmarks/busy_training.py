"""Training speed with measured threads against every fixed number, beside busy neighbours.

    python benchmarks/busy_training.py [--rounds 3] [--seconds 60] [--model nano] [--cases alone,comes]

On two cores that nothing else wants it takes an hour, and leaves benchmarks/results/busy_training.json; after Ctrl-C,
the cases that are complete. The exit code is 1 if the median share of a case is below 0.8.

A neighbour is a process that multiplies matrices, with so many threads. Each case trains with ``threads`` 1, 2, 4 and
so on, and with 0 (measured), in turn, each for so many seconds in a process of its own. What counts is images per
second of wall time from the first step on, measuring included. In the case ``comes`` the neighbour begins after a third
of the time, in ``goes`` it ends then. The share is of the best fixed number of the same round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from machine import keep

from qdeploy.core.machine import usable_cores
from qdeploy.core.run_folder import RunRecord
from qdeploy.training import config_from_recipe, train
from qdeploy.training.progress import Silent

CORES = usable_cores()
CASES = {"alone": 0, "one thread": 1, "a thread a core": CORES, "two a core": 2 * CORES, "comes": CORES, "goes": CORES}
"""Threads of the neighbour."""
LEAST_SHARE = 0.8
NEIGHBOUR = """
import sys, threading
import torch
torch.set_num_threads(1)
def work():
    a = torch.randn(256, 256)
    while True:
        a = (a @ a).clamp(-1, 1)
for _ in range(int(sys.argv[1])):
    threading.Thread(target=work).start()
"""


class EnoughError(Exception):
    """The time is over."""


class Timed(Silent):
    """Counts batches for a while."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.steps, self.begin, self.notes = seconds, 0, 0.0, list[str]()

    def started(self, record: RunRecord, folder: Path) -> None:
        print("started", flush=True)
        self.begin = time.perf_counter()

    def batch(self, epoch: int, done: int, total: int) -> None:
        self.steps += 1
        if time.perf_counter() - self.begin > self.seconds:
            raise EnoughError

    def note(self, text: str) -> None:
        print(text, flush=True)


def one(model: str, threads: int, seconds: float) -> None:
    """Train in this process and print images/s last."""
    config = config_from_recipe("small", model=model, threads=threads, epochs=10_000)
    shown = Timed(seconds)
    with tempfile.TemporaryDirectory() as place:
        try:
            train(config, Path(place) / "run", shown)
        except EnoughError:
            print(shown.steps * config.batch_size / (time.perf_counter() - shown.begin), flush=True)


@contextmanager
def neighbour(threads: int) -> Iterator[subprocess.Popen[bytes] | None]:
    """Keep a neighbour busy."""
    if not threads:
        yield None
        return
    process = subprocess.Popen([sys.executable, "-c", NEIGHBOUR, str(threads)])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def trained(model: str, case: str, threads: int, seconds: float) -> tuple[float, list[str]]:
    """Return images/s of one setting, and what the run said."""
    command = [sys.executable, __file__, "--one", str(threads), "--seconds", str(seconds), "--model", model]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    with (
        neighbour(0 if case == "comes" else CASES[case]) as early,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        process.stdout.readline()
        over = threading.Timer(seconds / 3, early.kill) if early and case == "goes" else None
        if over:
            over.start()
        if case == "comes":
            time.sleep(seconds / 3)
        with neighbour(CASES[case] if case == "comes" else 0):
            *lines, last = process.stdout.read().splitlines()
        if over:
            over.cancel()
    return float(last), lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--one", type=int, default=None)
    given = parser.parse_args()
    if given.one is not None:
        one(given.model, given.one, given.seconds)
        return
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n < CORES] + [CORES]
    rows: list[dict[str, Any]] = []
    try:
        for case in given.cases.split(","):
            rows.append(compared(case, counts, given))
            print(rows[-1], flush=True)
    finally:
        if rows:
            keep("busy_training", rows, model=given.model, seconds=given.seconds, rounds=given.rounds, cores=CORES)
    worst = min(rows, key=lambda row: row["median_share"])
    print(f"least share of the best fixed number: {worst['median_share']} ({worst['case']})")
    sys.exit(worst["median_share"] < LEAST_SHARE)


def compared(case: str, counts: list[int], given: argparse.Namespace) -> dict[str, Any]:
    """Train with every fixed number and with the measured one, in turn."""
    speeds: dict[int, list[float]] = {n: [] for n in (*counts, 0)}
    said: list[list[str]] = []
    for _ in range(given.rounds):
        for threads, values in speeds.items():
            speed, lines = trained(given.model, case, threads, given.seconds)
            values.append(speed)
            said += [lines] if threads == 0 else []
    shares = [speeds[0][i] / max(speeds[n][i] for n in counts) for i in range(given.rounds)]
    return {
        "case": case,
        "neighbour_threads": CASES[case],
        "images_per_s": {n or "measured": [round(v, 1) for v in values] for n, values in speeds.items()},
        "share_of_best_fixed": [round(s, 3) for s in shares],
        "median_share": round(statistics.median(shares), 3),
        "said": said,
    }


if __name__ == "__main__":
    main()
