"""One fresh process that opens a model and runs it: its peak memory after each step, and its start-up time.

``bench`` and ``tune`` start it with a model's path, a number of threads and an engine; it prints one JSON object.
Memory is taken in a process of its own, because one that has already held another model, or a parent's inherited
maximum, would answer for somebody else. The heavy imports are inside ``main``: the first reading is Python alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from qdeploy.core.machine import peak_memory_bytes, resident_bytes

READINGS = 64
"""Number of memory readings, spread over the further runs."""


def main(
    path: str,
    threads: str,
    engine: str = "ort",
    *,
    batch: str = "1",
    runs: str = "0",
    seconds: str = "3",
    library: str = "yes",
) -> None:
    """Open, run once, run on, and print what each step took in time and memory.

    Args:
        path: The model file.
        threads: Threads of one inference.
        engine: A key of ``ENGINES``.
        batch: Images of a run.
        runs: Further runs, over which the resident memory is read now and then.
        seconds: No further run starts after so much time.
        library: ``yes`` if the native engine may load the library beside the file.
    """
    python = peak_memory_bytes()
    from qdeploy.core.artifact import read_artifact
    from qdeploy.runtime.session import engine_class, open_session

    base = peak_memory_bytes()
    start = time.perf_counter_ns()
    engine_class(engine)
    begin = time.perf_counter_ns()
    runtime = peak_memory_bytes()
    artifact = replace(read_artifact(Path(path)), library=library == "yes")
    session = open_session(artifact, engine, int(threads), selftest=False)
    loaded = time.perf_counter_ns()
    model = peak_memory_bytes()
    size = artifact.card.preprocessing.size
    count = int(batch)
    images = bytes(count * size * size * 3)
    first = time.perf_counter_ns()
    session.infer_bytes(images, count)
    done = time.perf_counter_ns()
    peak = peak_memory_bytes()
    readings = resident_over(lambda: session.infer_bytes(images, count), int(runs), float(seconds))
    print(
        json.dumps(
            {
                "import_ms": (begin - start) / 1e6,
                "load_ms": (loaded - begin) / 1e6,
                "first_ms": (done - first) / 1e6,
                "python_bytes": python,
                "base_rss_bytes": base,
                "runtime_bytes": runtime,
                "model_bytes": model,
                "peak_rss_bytes": peak,
                "after_runs_bytes": peak_memory_bytes(),
                "resident": readings,
            }
        )
    )


def resident_over(run: Callable[[], object], runs: int, seconds: float) -> list[tuple[int, int]]:
    """Run something many times and read this process's memory now and then.

    Args:
        run: What to do again and again.
        runs: How often.
        seconds: Time limit.

    Returns:
        Pairs of runs done and resident bytes.
    """
    every = max(1, runs // READINGS)
    end = time.perf_counter() + seconds
    readings = []
    for number in range(1, runs + 1):
        run()
        if number % every == 0:
            readings.append((number, resident_bytes()))
            if time.perf_counter() > end:
                break
    return readings
