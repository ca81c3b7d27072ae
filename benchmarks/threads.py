"""Threads and spinning in ONNX Runtime: alone, one request every 20 ms, and beside a busy neighbour.

    python benchmarks/threads.py

The shipped nano as INT8 and fp32, and an untrained micro (139 M MACs). A thread that waits for work can sleep, or spin
for a while in case more comes: "stopped" spins within an inference only (session.force_spinning_stop).
"""

from __future__ import annotations

import qdeploy  # noqa: F401  # isort: skip  # first: it switches off the usage events of onnxruntime

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime as ort
from machine import keep

from qdeploy.bench import sample_images
from qdeploy.core.artifact import SHIPPED, Artifact, read_artifact
from qdeploy.core.metrics import percentile
from qdeploy.data.catalog import load_dataset
from qdeploy.export import ExportConfig, export_module
from qdeploy.models.registry import create_model
from qdeploy.runtime.engines.onnxruntime_binding import open_binding

SETTINGS = ((1, "none"), (2, "asleep"), (2, "spinning"), (2, "stopped"))
ENTRIES = {
    "none": {},
    "asleep": {"session.intra_op.allow_spinning": "0"},
    "spinning": {"session.intra_op.allow_spinning": "1", "session.force_spinning_stop": "0"},
    "stopped": {"session.intra_op.allow_spinning": "1", "session.force_spinning_stop": "1"},
}
RUNS, BLOCK = 680, 20
PACED, PERIOD_S = 50, 0.02


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "nano int8": SHIPPED / "model.int8.onnx",
            "nano fp32": SHIPPED / "model.fp32.onnx",
            "micro fp32": micro(Path(folder)),
        }
        print("measuring", flush=True)
        rows = [row for name, file in files.items() for row in measured(name, read_artifact(file))]
    keep("threads", rows, nice=os.nice(0), runs=RUNS, paced=PACED, period_s=PERIOD_S)


def micro(folder: Path) -> Path:
    data = load_dataset()
    module = create_model("micro", len(data.classes))
    report = export_module(module, data.classes, data.preprocessing, data, folder / "micro", config=ExportConfig())
    return Path(report.artifacts[0].path)


def measured(name: str, artifact: Artifact) -> list[dict[str, Any]]:
    sessions = [opened(artifact, *setting) for setting in SETTINGS]
    images = sample_images(artifact.card.preprocessing)
    alone = timed(sessions, images)
    with busy_neighbour():
        beside = timed(sessions, images)
    rows = []
    for (threads, waiting), session, mine, disturbed in zip(SETTINGS, sessions, alone, beside, strict=True):
        row = {"model": name, "threads": threads, "waiting": waiting, **summary("alone", mine)}
        rows.append({**row, **summary("neighbour", disturbed), **paced(session, images)})
        print(rows[-1], flush=True)
    return rows


def opened(artifact: Artifact, threads: int, waiting: str) -> ort.InferenceSession:
    return open_binding(artifact.data, threads=threads, target=artifact.card.target, entries=ENTRIES[waiting])


def timed(sessions: list[ort.InferenceSession], images: Any) -> list[list[float]]:
    """Give latencies in milliseconds of back-to-back runs, in alternating blocks."""
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(RUNS // BLOCK):
        for mine, session in zip(times, sessions, strict=True):
            mine += [timed_once(session, images[i : i + 1]) for i in range(BLOCK)]
            time.sleep(0.002)  # or the spinning threads of one disturb the next
    return times


def timed_once(session: ort.InferenceSession, image: Any) -> float:
    begin = time.perf_counter_ns()
    session.run(None, {"image": image})
    return (time.perf_counter_ns() - begin) / 1e6


def paced(session: ort.InferenceSession, images: Any) -> dict[str, float]:
    """Run once every 20 ms; give the median latency and the CPU time that one request costs, in milliseconds."""
    times, cpu = [], time.process_time()
    begin = time.perf_counter()
    for i in range(PACED):
        time.sleep(max(0.0, begin + i * PERIOD_S - time.perf_counter()))
        times.append(timed_once(session, images[i % len(images)][None]))
    time.sleep(PERIOD_S)
    used = (time.process_time() - cpu) * 1e3 / PACED
    return {"paced_p50_ms": round(percentile(times, 50), 3), "paced_cpu_ms": round(used, 2)}


def summary(where: str, times: list[float]) -> dict[str, float]:
    return {f"{where}_p{p}_ms": round(percentile(times, p), 3) for p in (50, 99)}


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """Keep one core busy with another process."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
