"""One fresh process that opens a model and runs it once: its memory and its cold start.

``bench`` and ``tune`` start it with a model's path, a number of threads and an engine; it prints one JSON object. Peak
memory is taken in a process of its own, because a process that has already held another model, or a parent's inherited
maximum, would answer for somebody else.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from qdeploy.core.artifact import read_artifact
from qdeploy.core.machine import peak_memory_bytes
from qdeploy.runtime.session import engine_class, open_session


def main(path: str, threads: str, engine: str = "ort", *, batch: str = "1") -> None:
    """Open, run once and print import_ms, load_ms, first_ms and the two memory peaks."""
    base = peak_memory_bytes()
    start = time.perf_counter_ns()
    engine_class(engine)
    begin = time.perf_counter_ns()
    artifact = read_artifact(Path(path))
    session = open_session(artifact, engine, int(threads), selftest=False)
    loaded = time.perf_counter_ns()
    size = artifact.card.preprocessing.size
    session.infer(np.zeros((int(batch), size, size, 3), np.uint8))
    first = time.perf_counter_ns()
    print(
        json.dumps(
            {
                "import_ms": (begin - start) / 1e6,
                "load_ms": (loaded - begin) / 1e6,
                "first_ms": (first - loaded) / 1e6,
                "base_rss_bytes": base,
                "peak_rss_bytes": peak_memory_bytes(),
            }
        )
    )
