"""Honest numbers: interleaved latency, throughput, memory and start-up of one or several artifacts.

All models of a comparison run in the same process, in alternating blocks, so that a noisy neighbour hits all
of them alike; memory and start-up come from fresh processes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.artifact import Artifact, read_artifact
from qdeploy.core.errors import InputError, QdeployError
from qdeploy.core.machine import environment
from qdeploy.core.metrics import MIN_SAMPLES, percentile
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.embedded import embedded_source
from qdeploy.runtime.session import Session, open_session

BLOCK = 10
"""Consecutive runs of one model before the next one's turn."""
WARMUP = 20
NUM_IMAGES = 64
"""Different images that the runs rotate over."""
PROBES = 3
"""Fresh processes per model; the median counts."""
BOOTSTRAPS = 2000


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """How to measure."""

    threads: int = 1
    batch_size: int = 1
    runs: int = 1000
    """Timed runs of each model; p99 needs at least 662."""
    seconds: float = 60.0
    """Time limit of all models' runs together; a slow model gets fewer runs."""

    def __post_init__(self) -> None:
        for name, low, high in (("threads", 1, 1024), ("batch_size", 1, 4096), ("runs", BLOCK, 10**7)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"--{name.replace('_', '-')} must be between {low} and {high}, found {value}")
        if not self.seconds > 0:
            raise InputError(f"--seconds must be positive, found {self.seconds}")


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """One model's numbers; a percentile is None where there are too few runs to state it."""

    path: str
    name: str
    precision: str
    engine: str
    batch: int
    threads: int
    n: int
    latency_ms: dict[str, float | None]
    """p50, p90, p95, p99, mean, std of one call, in milliseconds."""
    throughput_per_s: float
    """Images per second: the batch divided by the mean latency."""
    peak_rss_bytes: int
    base_rss_bytes: int
    """Peak before the model is opened: Python, numpy and this package."""
    model_bytes: int
    import_ms: float
    """Importing the engine's library."""
    load_ms: float
    """Reading, checking and opening the file."""
    first_ms: float
    cold_start_ms: float
    """A whole fresh process: interpreter, imports, load and first call."""
    accuracy: dict[str, Any]
    """As measured at export, from the card."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How many times faster one model is than another, from blocks measured in turn."""

    model: str
    against: str
    ratio: float
    ci95: tuple[float, float]
    verdict: str
    """faster, slower, or no difference beyond noise."""


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """The whole measurement."""

    environment: dict[str, Any]
    config: BenchConfig
    results: tuple[BenchResult, ...]
    comparisons: tuple[Comparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give the JSON document of ``qdeploy bench``."""
        return asdict(self)


def bench(
    paths: Sequence[Path], config: BenchConfig | None = None, tick: Callable[[int, int], None] | None = None
) -> BenchReport:
    """Measure artifacts side by side; the first is the one the others are compared with.

    Args:
        paths: Model files.
        config: How to measure.
        tick: Called with the number of rounds done and their total.
    """
    config = config or BenchConfig()
    artifacts = [read_artifact(p) for p in paths]
    sessions = [open_session(a, threads=config.threads) for a in artifacts]
    inputs = [sample_images(a.card.preprocessing) for a in artifacts]
    rounds = time_rounds(sessions, inputs, config.runs, config.seconds, tick, config.batch_size)
    names = [f"{a.card.name} {a.card.precision}" for a in artifacts]
    if len(set(names)) < len(names):
        names = [str(a.path) for a in artifacts]
    results = tuple(
        _result(name, a, s, times, config) for name, a, s, times in zip(names, artifacts, sessions, rounds, strict=True)
    )
    comparisons = tuple(compare(results[i].name, results[0].name, rounds[i], rounds[0]) for i in range(1, len(results)))
    return BenchReport(
        environment={**environment("qdeploy", "onnxruntime", "numpy", "pillow"), "threads": config.threads},
        config=config,
        results=results,
        comparisons=comparisons,
    )


def time_rounds(
    sessions: Sequence[Session],
    inputs: Sequence[NDArray[np.uint8]],
    runs: int,
    seconds: float,
    tick: Callable[[int, int], None] | None = None,
    batch_size: int = 1,
) -> list[list[list[float]]]:
    """Time sessions in alternating blocks.

    Args:
        sessions: The opened models.
        inputs: For each, images ``[NUM_IMAGES, S, S, 3]`` that the batches rotate over.
        runs: Timed runs of each.
        seconds: No new round starts after so much time, if there are at least 7.
        tick: Called with the number of rounds done and their total.
        batch_size: Images of one call.

    Returns:
        For each session, a list of rounds, each ``BLOCK`` latencies in milliseconds.
    """
    for session, images in zip(sessions, inputs, strict=True):
        for i in range(WARMUP):
            session.infer(_batch(images, i, batch_size))
    rounds: list[list[list[float]]] = [[] for _ in sessions]
    total = -(-runs // BLOCK)
    begin = time.perf_counter()
    for r in range(total):
        for mine, session, images in zip(rounds, sessions, inputs, strict=True):
            mine.append([_time(session, _batch(images, r * BLOCK + i, batch_size)) for i in range(BLOCK)])
        if tick:
            tick(r + 1, total)
        if r >= 6 and time.perf_counter() - begin > seconds:
            break
    return rounds


def compare(model: str, against: str, new: list[list[float]], old: list[list[float]]) -> Comparison:
    """Compare two models' rounds: the median ratio of their medians, with a bootstrapped 95 % interval."""
    ratios = np.asarray([statistics.median(o) / statistics.median(n) for n, o in zip(new, old, strict=True)])
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (BOOTSTRAPS, len(ratios))), axis=1)
    low, high = (float(v) for v in np.percentile(medians, [2.5, 97.5]))
    verdict = "faster" if low > 1.0 else "slower" if high < 1.0 else "no difference beyond noise"
    return Comparison(model=model, against=against, ratio=float(np.median(ratios)), ci95=(low, high), verdict=verdict)


def sample_images(preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Give 64 different real images at a model's size, ``[64, S, S, 3]``."""
    records = embedded_source().records["test"][:: 1000 // NUM_IMAGES][:NUM_IMAGES]
    return np.stack([preprocessing(r.image()) for r in records])


def _batch(images: NDArray[np.uint8], start: int, size: int) -> NDArray[np.uint8]:
    return images[(start + np.arange(size)) % len(images)]


def _time(session: Session, images: NDArray[np.uint8]) -> float:
    begin = time.perf_counter_ns()
    session.infer(images)
    return (time.perf_counter_ns() - begin) / 1e6


def latency_summary(samples: Sequence[float]) -> dict[str, float | None]:
    """Give p50, p90, p95, p99, mean and standard deviation; None where there are too few samples."""
    tails = {f"p{p}": percentile(samples, p) if len(samples) >= n else None for p, n in MIN_SAMPLES.items()}
    return {
        "p50": percentile(samples, 50),
        **tails,
        "mean": statistics.fmean(samples),
        "std": statistics.stdev(samples),
    }


def _result(
    name: str, artifact: Artifact, session: Session, rounds: list[list[float]], config: BenchConfig
) -> BenchResult:
    samples = [t for block in rounds for t in block]
    probes = sorted((_probe(artifact.path, config.threads) for _ in range(PROBES)), key=lambda p: p["cold_start_ms"])
    middle = probes[PROBES // 2]
    return BenchResult(
        path=str(artifact.path),
        name=name,
        precision=artifact.card.precision,
        engine=session.engine,
        batch=config.batch_size,
        threads=config.threads,
        n=len(samples),
        latency_ms=latency_summary(samples),
        throughput_per_s=config.batch_size * 1000.0 / statistics.fmean(samples),
        peak_rss_bytes=int(middle["peak_rss_bytes"]),
        base_rss_bytes=int(middle["base_rss_bytes"]),
        model_bytes=len(artifact.data),
        import_ms=middle["import_ms"],
        load_ms=middle["load_ms"],
        first_ms=middle["first_ms"],
        cold_start_ms=middle["cold_start_ms"],
        accuracy=artifact.card.accuracy,
    )


def _probe(path: Path, threads: int) -> dict[str, float]:
    # not -m: that would let a file of the user's folder, a numpy.py say, be imported
    code = "import sys; sys.path.remove(''); from qdeploy.runtime.probe import main; main(*sys.argv[1:])"
    begin = time.perf_counter_ns()
    done = subprocess.run([sys.executable, "-c", code, str(path), str(threads)], capture_output=True, text=True)
    elapsed = (time.perf_counter_ns() - begin) / 1e6
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        raise QdeployError(f"measuring {path} in a fresh process failed: {last}")
    return {**json.loads(done.stdout), "cold_start_ms": elapsed}
