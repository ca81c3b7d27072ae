"""Whether the same export gives the same file again: INT8 exports of one run in a row, alone or beside a neighbour.

    python benchmarks/repeat_exports.py RUN [RUN ...] [--times 10] [--neighbour idle|busy|bursts|memory] [--out NAME]

A neighbour is a process of its own for each core but one: `busy` computes all the time, `bursts` for up to 0.3 s now
and then, `memory` writes through 64 MB over and over. A row gives the choices of float layers that were found, how
often each, and the range of the files' sizes, signal-to-noise ratios and the seconds of the whole command.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from machine import keep

from qdeploy.core.machine import usable_cores

NEIGHBOURS = {
    "idle": "",
    "busy": "while True: pass",
    "bursts": "import random, time\nwhile True:\n end = time.time() + random.random() * .3\n"
    " while time.time() < end: pass\n time.sleep(random.random() * .3)",
    "memory": "import numpy\na = numpy.zeros(8_000_000)\nwhile True: a += 1",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--neighbour", action="append", choices=NEIGHBOURS)
    parser.add_argument("--out", default="repeat_exports", help="name of the results")
    given = parser.parse_args()
    rows = []
    for run in given.runs:
        for neighbour in given.neighbour or ["idle", "busy"]:
            rows.append(row(run, neighbour, given.times))
            print(rows[-1], flush=True)
    keep(given.out, rows, times=given.times)


def row(run: Path, neighbour: str, times: int) -> dict[str, Any]:
    beside = [
        subprocess.Popen([sys.executable, "-c", NEIGHBOURS[neighbour]])
        for _ in range(max(1, usable_cores() - 1) if neighbour != "idle" else 0)
    ]
    try:
        exports = [export(run) for _ in range(times)]
    finally:
        for process in beside:
            process.kill()
    files = [e["artifacts"][-1] for e in exports]
    choices = Counter(f["float_layers"] for f in files)
    return {
        "model": exports[0]["name"],
        "neighbour": neighbour,
        "choices": dict(choices.most_common()),
        "size_kB": spread([f["size_bytes"] / 1e3 for f in files]),
        "sqnr_db": spread([f["parity"]["sqnr_db"] for f in files]),
        "times_fp32": spread([e["comparison"]["ratio"] for e in exports]),
        "seconds": spread([e["seconds"] for e in exports]),
    }


def export(run: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        options = ("--int8", "--allow-slower", "--allow-drop", "--json", "--out", f"{folder}/export")
        command = [sys.executable, "-m", "qdeploy", "export", str(run), *options]
        begin = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - begin
    if done.returncode != 0:
        sys.exit(done.stderr)
    return {**json.loads(done.stdout), "seconds": seconds}


def spread(values: list[float]) -> dict[str, float]:
    return {
        "least": round(min(values), 2),
        "median": round(sorted(values)[len(values) // 2], 2),
        "most": round(max(values), 2),
    }


if __name__ == "__main__":
    main()
