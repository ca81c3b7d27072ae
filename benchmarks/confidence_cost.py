"""What calibrated confidence, `unknown`, the watch for drift and collecting cost at run time.

    python benchmarks/confidence_cost.py [--rounds N] [--header FOLDER]

The model in the package, INT8, with what its card has, beside the same graph without a temperature, whose card knows
no threshold and no histograms: a call of the Python runtime, the median that the C kit's program prints of its own 100
runs, and one PNG at a time on one kept connection to `qdeploy serve`, there also without its watch and with
`--collect`. All take turns in blocks; a ratio is the median over the rounds, with a bootstrapped 95 % interval. The C
kit needs onnxruntime_c_api.h: in .venv/include once `make test` has fetched it, or in --header.
"""

from __future__ import annotations

import qdeploy  # isort: skip  # first: it switches off the usage events of onnxruntime

import argparse
import http.client
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from machine import keep

from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.export import write_kits
from qdeploy.export.graph.seal import sealed_bytes
from qdeploy.export.graph.temperature import without_temperature

BLOCK = 10
WARMUP = 200
BOOTSTRAPS = 2000
IMAGE = Path(__file__).parents[1] / "examples" / "bag.png"
Timed = Callable[[], float]
"""Returns the milliseconds of one call."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument(
        "--header", type=Path, default=Path(sys.prefix) / "include", help="onnxruntime_c_api.h is there"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place)
        exports = {"without": folder / "without" / "export", "with": folder / "with" / "export"}
        for name, export in exports.items():
            shutil.copytree(SHIPPED, export)
            if name == "without":
                for file in export.glob("model.*.onnx"):
                    make_plain(file)
        rows = compared("a call in Python", python_calls(exports), given.rounds)
        rows += compared(
            "the C kit", {n: c_program(e, given.header) for n, e in exports.items()}, given.rounds, block=1
        )
        rows += compared("a request to `qdeploy serve`", servers(exports, folder, stack), given.rounds)
    keep("confidence_cost", rows, model="shipped, INT8")


def make_plain(file: Path) -> None:
    """Take the temperature out of a model file, and all that its card knows of confidence."""
    artifact = read_artifact(file)
    graph = without_temperature(onnx.load_from_string(artifact.data))
    file.write_bytes(sealed_bytes(graph, replace(artifact.card, confidence=None)))


def python_calls(exports: Mapping[str, Path]) -> dict[str, Timed]:
    """Return calls of the runtime; the last one also watches for drift."""
    classifiers = {name: qdeploy.load(export / "model.int8.onnx") for name, export in exports.items()}
    pixels = classifiers["with"].card.goldens.images[0].copy()
    watch = classifiers["with"].watch_drift()
    assert watch is not None
    assert classifiers["without"].watch_drift() is None
    watched, judging = classifiers["with"], watch
    return {
        **{name: timed(lambda c=c: c(pixels)) for name, c in classifiers.items()},  # type: ignore[misc]
        "with, watched": timed(lambda: judging.see(watched(pixels))),
    }


def c_program(export: Path, header: Path) -> Timed:
    """Build the C kit of an export, and return what runs it for the median of its runs."""
    home = export.parent / "onnxruntime"
    (home / "lib").mkdir(parents=True)
    library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (home / "lib" / name).symlink_to(library)
    (home / "include").symlink_to(header)
    kit = write_kits(export, ["c"])["c"]
    subprocess.run(["make", "-s", f"ORT_HOME={home}"], cwd=kit, check=True)

    def run() -> float:
        words = ["./classify", "./model.int8.onnx", "example.ppm"]
        said = subprocess.run(words, cwd=kit, check=True, capture_output=True, text=True).stdout
        found = re.search(r"median of 100 more: ([\d.]+) ms", said)
        assert found, said
        return float(found[1])

    return run


def servers(exports: Mapping[str, Path], folder: Path, stack: ExitStack) -> dict[str, Timed]:
    """Start servers, which end with the stack, and return requests to them."""
    kinds = {
        "without": [exports["without"], "--drift-window", "0"],
        "with": [exports["with"], "--drift-window", "0"],
        "with, watched": [exports["with"]],
        "with, watched and collected": [exports["with"], "--collect", folder / "collected"],
    }
    return {name: request(_started(words, stack)) for name, words in kinds.items()}


def _started(words: list[Any], stack: ExitStack) -> int:
    """Start a server, and return its port."""
    command = [sys.executable, "-m", "qdeploy", "serve", "--port", "0", *map(str, words)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    stack.callback(server.wait)
    stack.callback(server.terminate)
    assert server.stdout
    return int(re.search(r":(\d+)", server.stdout.readline())[1])  # type: ignore[index]


def request(port: int) -> Timed:
    """Return what posts an image on a kept connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    image = IMAGE.read_bytes()

    def post() -> None:
        connection.request("POST", "/predict", image, {"Content-Type": "image/png"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()

    return timed(post)


def timed(call: Callable[[], object]) -> Timed:
    """Return what runs a call and gives its milliseconds."""

    def run() -> float:
        begin = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - begin) / 1e6

    return run


def compared(what: str, calls: Mapping[str, Timed], rounds: int, block: int = BLOCK) -> list[dict[str, Any]]:
    """Let calls take turns; compare each with the first."""
    for call in calls.values():
        for _ in range(WARMUP if block > 1 else 1):
            call()
    medians: dict[str, list[float]] = {name: [] for name in calls}
    turns = list(calls.items())
    for r in range(rounds):
        for name, call in turns[r % len(turns) :] + turns[: r % len(turns)]:
            medians[name].append(float(np.median([call() for _ in range(block)])))
    base = np.asarray(next(iter(medians.values())))
    rows = []
    for name, values in medians.items():
        ratios = np.asarray(values) / base
        draws = np.median(np.random.default_rng(0).choice(ratios, (BOOTSTRAPS, rounds)), axis=1)
        rows.append(
            {
                "what": what,
                "file": name,
                "p50_ms": round(float(np.median(values)), 4),
                "ratio": round(float(np.median(ratios)), 4),
                "ci95": [round(float(v), 4) for v in np.percentile(draws, [2.5, 97.5])],
                "n": rounds * block,
            }
        )
    return rows


if __name__ == "__main__":
    main()
