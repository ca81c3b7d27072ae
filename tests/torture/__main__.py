"""Runs the campaign: ``python -m tests.torture [crash] [images] [artifacts] [service] [--seed N] [--minutes M]``.

Each part replaces its own figures in the report and leaves the others'. The exit code is 1 if anything was lost,
crashed or answered wrongly.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from qdeploy.core.files import read_json, write_json
from qdeploy.core.machine import environment
from tests.torture import crash
from tests.torture.scenarios import SCENARIOS, World

SHARES = {"crash": 0.5, "images": 0.1, "artifacts": 0.2, "service": 0.2}
"""How the time is divided among the parts."""
PACKAGES = ("qdeploy", "torch", "onnx", "onnxruntime", "numpy", "pillow", "uvicorn", "httptools", "hypothesis")


def main() -> int:
    """Run the parts that are named, or all, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *SHARES], metavar="PART")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=25.0, help="for all parts together, beside the preparation")
    parser.add_argument("--only", default="", metavar="NAMES", help="of crash, some commands: train,data")
    parser.add_argument("--out", type=Path, help="where the report goes, as JSON")
    given = parser.parse_args()
    parts = given.parts or list(SHARES)
    unit = given.minutes / sum(SHARES[p] for p in parts)
    found: dict[str, Any] = {}
    chosen = [s for s in SCENARIOS if not given.only or s.name in given.only.split(",")]
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        for part in parts:
            begin = time.monotonic()
            folder = Path(name) / part
            folder.mkdir()
            minutes = unit * SHARES[part]
            if part == "crash":
                report = crash.torture(World(folder), chosen, given.seed, minutes)
            else:
                report = import_module(f"tests.torture.{part}").torture(folder, given.seed, minutes)
            found[part] = {
                "command": " ".join(["python -m tests.torture", *sys.argv[1:]]),
                "date": datetime.now(timezone.utc).date().isoformat(),
                "seed": given.seed,
                "minutes": round((time.monotonic() - begin) / 60, 1),
                "environment": environment(*PACKAGES),
                **report.to_dict(),
            }
    before = read_json(given.out)["parts"] if given.out and given.out.exists() else {}
    every = {**before, **found}
    faults = [f"{part}: {fault}" for part, report in found.items() for fault in report["faults"]]
    document = {
        "cases": sum(report["cases"] for report in every.values()),
        "faults": sum(len(report["faults"]) for report in every.values()),
        "parts": every,
    }
    if given.out:
        write_json(given.out, document)
    print({part: report["sums"] for part, report in found.items()})
    print(f"{len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
