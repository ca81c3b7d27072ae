"""Measurements in fresh processes: peak memory after each step, growth over many runs, and start-up of a command."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qdeploy.core.errors import QdeployError
from qdeploy.core.interpreter import python_command

PROBE = (
    "from qdeploy.checks.probe import main; "
    "main(*sys.argv[1:4], batch=sys.argv[4], runs=sys.argv[5], seconds=sys.argv[6], library=sys.argv[7])"
)
COMMAND = "from qdeploy.cli.main import main; main()"
PROBES = 3
"""Fresh processes per model; the one with the median start counts."""
COLD_STARTS = 5
GROWTH_RUNS = 4000
QUICK_GROWTH_RUNS = 500
GROWTH_SECONDS = 3.0
SETTLED = 0.25
"""Share of the runs before which memory may still grow: pools fill up."""
PARTS = 8
OWN_BYTES = 64 * 1024
"""Growth over all settled runs that is no sign yet: notes of the measurement itself, and pools that still settle."""
NO_GROWTH = "no growth beyond noise"


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Whether memory grows with every run."""

    runs: int
    bytes_per_run: float
    """Slope of the resident size over the runs, a quarter of them left out at the beginning."""
    finding: str
    """no growth beyond noise, or grows."""


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """What a fresh process is started with."""

    path: Path
    engine: str
    threads: int
    batch: int
    quick: bool
    library: bool = True
    """Whether the native engine may load a library beside the file; see ``Artifact.library``."""

    def probe(self) -> dict[str, Any]:
        """Open and run the model and return the middle process's findings; see ``qdeploy.checks.probe``."""
        found = []
        for _ in range(1 if self.quick else PROBES):
            begin = time.perf_counter_ns()
            values = self._probe(runs=0, seconds=0.0)
            found.append({**values, "process_ms": (time.perf_counter_ns() - begin) / 1e6})
        return sorted(found, key=lambda p: p["process_ms"])[len(found) // 2]

    def growth(self) -> tuple[Growth | None, dict[str, Any]]:
        """Run the model thousands of times.

        Returns:
            Whether it grows, None where it is too slow to tell; and the process's findings.
        """
        found = self._probe(runs=QUICK_GROWTH_RUNS if self.quick else GROWTH_RUNS, seconds=GROWTH_SECONDS)
        return growth_of([(n, size) for n, size in found["resident"]]), found

    def cold_starts_ms(self, image: bytes) -> list[float]:
        """Time ``qdeploy predict`` of one image: from the interpreter's start to the answer."""
        times = []
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "image.jpg"
            file.write_bytes(image)
            arguments = ("predict", str(file), "--model", str(self.path), "--engine", self.engine)
            for _ in range(1 if self.quick else COLD_STARTS):
                begin = time.perf_counter_ns()
                _run(f"`qdeploy predict` with {self.path}", COMMAND, *arguments, "--threads", str(self.threads))
                times.append((time.perf_counter_ns() - begin) / 1e6)
        return times

    def _probe(self, runs: int, seconds: float) -> dict[str, Any]:
        library = "yes" if self.library else "no"
        words = (self.path, self.threads, self.engine, self.batch, runs, seconds, library)
        return json.loads(_run(f"measuring {self.path}", PROBE, *map(str, words)))


def growth_of(readings: Sequence[tuple[int, int]]) -> Growth | None:
    """Judge pairs of runs done and resident bytes; None if there are too few.

    Memory that grows with every run is larger in each eighth than in the one before: of noise, one series in 40,000 is;
    a pool that fills up once is not. And it grows by more than 64 kB in all.
    """
    settled = readings[int(len(readings) * SETTLED) :]
    if len(settled) < 2 * PARTS:
        return None
    runs, sizes = (np.asarray(column, np.float64) for column in zip(*settled, strict=True))
    parts = [part.mean() for part in np.array_split(sizes, PARTS)]
    grows = bool((np.diff(parts) > 0).all()) and parts[-1] - parts[0] > OWN_BYTES
    return Growth(
        runs=readings[-1][0],
        bytes_per_run=float(np.polyfit(runs, sizes, 1)[0]),
        finding="grows" if grows else NO_GROWTH,
    )


def _run(what: str, code: str, *arguments: str) -> str:
    done = subprocess.run([*python_command(code), *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        raise QdeployError(f"{what} in a fresh process failed: {last}")
    return done.stdout


def ladder_of(found: dict[str, Any]) -> dict[str, int]:
    """Return the peak of the resident size, in bytes, after each step of one fresh process."""
    return {
        "python": found["python_bytes"],
        "runtime": found["runtime_bytes"],
        "model": found["model_bytes"],
        "first_run": found["peak_rss_bytes"],
        "all_runs": found["after_runs_bytes"],
    }
