"""``qdeploy serve`` under load: throughput, latency, peers, overload, and what it costs beside its work.

    python benchmarks/serving.py [PART...] [--quick] [--peers FOLDER] [--out FILE]

Each part replaces its own figures in the file and leaves the others'; without any named, all run but the soak, which
takes half an hour, and the peers if no folder is given for their environments (they are made there). Server and client
have a core each, if not said otherwise, and the in-process figures are of the server's core.

throughput  requests per second, closed loop, against decoding, inference and top-5 in a process of its own, in turn
latency     open loop at 70 % of the saturation, constant rate and Poisson, from the time at which a request was due
peers       the same fp32 model behind FastAPI, LitServe and MLServer: speed, memory, start, SIGTERM, a bomb
overload    open loop at twice the saturation: goodput, refusals
idle        10,000 idle connections
bomb        a PNG file of 144 megapixels
start       start to ready, memory
install     `pip install qdeploy[serve]` into an empty folder
soak        half an hour at 70 %: failures, growth of memory
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from machine import RESULTS
from serving_bench import limits, speed
from serving_bench.load import WRK
from serving_bench.setup import NUM_IMAGES, Setup, write_images

from qdeploy.core.files import read_json, write_json
from qdeploy.core.machine import environment

PARTS = {
    "throughput": speed.throughput,
    "latency": speed.latency,
    "peers": speed.peers,
    "overload": speed.overload,
    "idle": limits.idle,
    "bomb": limits.bombs,
    "start": limits.start,
    "install": limits.install,
    "soak": limits.soak,
}
PACKAGES = ("qdeploy", "onnxruntime", "numpy", "pillow", "uvicorn", "httptools", "uvloop")


def main() -> None:
    given = _given()
    out = given.out
    parts = given.parts or [p for p in PARTS if p != "soak" and (p != "peers" or given.peers)]
    with tempfile.TemporaryDirectory(prefix="serving-") as name:
        setup = Setup(
            folder=Path(name),
            peers=given.peers and given.peers.absolute(),
            quick=given.quick,
            soak_s=60 * (given.minutes if given.minutes is not None else 0.5 if given.quick else 30),
        )
        if len(setup.cores) < 2:
            sys.exit("server and client need a core each, found one")
        write_images(setup.folder)
        for part in parts:
            begin = time.perf_counter()
            facts = _facts(setup)
            print(f"{part} ...", flush=True)
            found = PARTS[part](setup)
            os.sched_setaffinity(0, setup.cores)
            _keep(out, part, {**facts, "seconds": round(time.perf_counter() - begin, 1), **found})
            for line in found["bars"]:
                mark = "met" if line["met"] else "NOT MET"
                print(f"  {mark}: {line['what']}: {line['found']}, asked {line['asked']}", flush=True)
    print(f"kept in {out}")


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", help="default: all but the soak")
    parser.add_argument("--quick", action="store_true", help="two rounds of each; not for publication")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="where the peers' environments are, or are made")
    parser.add_argument("--minutes", type=float, help="of the soak; default 30")
    parser.add_argument("--out", type=Path, default=RESULTS / "serving.json")
    given = parser.parse_args()
    if "peers" in given.parts and given.peers is None:
        parser.error("the peers need --peers FOLDER")
    return given


def _facts(setup: Setup) -> dict[str, Any]:
    """Return how a part is measured, with the load of the machine before."""
    return {
        "command": " ".join(["python", "benchmarks/serving.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "environment": environment(*PACKAGES),
        "client": _client(),
        "images": f"{NUM_IMAGES} of each kind, in turn",
        "threads_of_one_inference": 1,
        "publishable": not setup.quick,
    }


def _client() -> str:
    if WRK is None:
        return "own"
    told = subprocess.run([WRK, "-v"], capture_output=True, text=True).stdout.split()
    return f"closed loop: wrk {told[1]}, 1 thread; open loop: own, 1 thread"


def _keep(out: Path, part: str, found: dict[str, Any]) -> None:
    before = read_json(out) if out.is_file() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, {**before, part: found})


if __name__ == "__main__":
    main()
