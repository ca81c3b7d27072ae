"""Stands in for a trial's process: what it does is written in the model's name."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

path = Path(sys.argv[1])
spec = json.loads(path.read_text())
name = spec["model"]
if name == "raises":
    raise RuntimeError("this model cannot be built")
if name == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if name == "crashes":
    os.abort()
if name == "sleeps":
    (path.parent / "pid.txt").write_text(str(os.getpid()))
    time.sleep(60)
(path.parent / "times.txt").write_text(f"{time.monotonic()}")
time.sleep(0.3)
result = "{" if name == "damaged" else json.dumps({"answer": 42, "threads": os.environ["OMP_NUM_THREADS"]})
if name != "silent":
    (path.parent / f"{spec['kind']}-{spec['rung']}.json").write_text(result)
