"""Peak memory of an export to INT8, over what its process had once everything was imported.

    python benchmarks/export_memory.py runs/NAME [--repeats 3]

Each repetition is a process of its own. The first finds nothing in a cache of its own, so it traces and calibrates.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from qdeploy.core.machine import environment

CHILD = """
import re, sys
from pathlib import Path
def memory(name):
    return int(re.search(name + r":\\\\s+(\\\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3
from qdeploy.export.api import ExportConfig, export
start = memory("VmRSS")
export(Path(sys.argv[1]), ExportConfig(int8=True), Path(sys.argv[2]))
print(start, memory("VmHWM"))
""".replace("\\\\", "\\")


def main() -> None:
    """Measure, and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.repeats):
            command = [sys.executable, "-c", CHILD, given.run, f"{folder}/{number}"]
            variables = {**os.environ, "QDEPLOY_CACHE": f"{folder}/cache"}
            done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
            start, peak = map(float, done.stdout.split())
            rows.append({"start_mb": start, "peak_mb": peak, "over_start_mb": round(peak - start, 1)})
    print(json.dumps({"run": given.run.name, "repeats": rows, "environment": environment("qdeploy", "torch")}))


if __name__ == "__main__":
    main()
