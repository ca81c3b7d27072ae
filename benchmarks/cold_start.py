"""Start-up and memory of whole commands, beside the bare floor, in turn.

    python benchmarks/cold_start.py [REPEATS]

The floor is Python with numpy, Pillow, ONNX Runtime, a session on the same model and one run. A command is timed to the
end of its process, which qdeploy does not take apart, so that the floor without that is a row of its own; its peak
memory is of another run, which prints it.
"""

from __future__ import annotations

import compileall
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import keep

from qdeploy.core.artifact import SHIPPED

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "examples" / "shirt.png"
FLOOR = f"""
import numpy, PIL.Image, onnxruntime
options = onnxruntime.SessionOptions(); options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession({str(SHIPPED / "model.int8.onnx")!r}, options)
image = numpy.asarray(PIL.Image.open({str(IMAGE)!r}).convert("RGB").resize((64, 64)))
session.run(None, {{"image": image[None]}})
"""
PEAK = "\nimport sys; from qdeploy.core.machine import peak_memory_bytes; print(peak_memory_bytes(), file=sys.stderr)"
QDEPLOY = "import sys; sys.argv = ['qdeploy', *{arguments!r}]; from qdeploy.cli.main import main, run; main()"
COMMANDS = {
    "python -c pass": "pass",
    "floor": FLOOR,
    "floor, not taken apart": f"{FLOOR}import os; os._exit(0)",
    "import qdeploy": "import qdeploy",
    "qdeploy --help": QDEPLOY.format(arguments=["--help"]),
    "qdeploy predict image.png": QDEPLOY.format(arguments=["predict", str(IMAGE)]),
    "qdeploy predict image.png --no-selftest": QDEPLOY.format(arguments=["predict", str(IMAGE), "--no-selftest"]),
}


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    compileall.compile_dir(SHIPPED.parent, quiet=1)  # as installing does
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    peaks: dict[str, int] = {}
    for _ in range(repeats):
        for name, code in COMMANDS.items():
            begin = time.perf_counter()
            started(code)
            times[name].append(time.perf_counter() - begin)
            kept = code.replace("main()", "run(sys.argv[1:])").replace("os._exit(0)", "")
            peaks[name] = int(started(kept + PEAK).split()[-1])
    rows = [
        {
            "command": name,
            "n": repeats,
            "median_s": round(statistics.median(t), 4),
            "min_s": round(min(t), 4),
            "max_s": round(max(t), 4),
            "peak_MB": round(peaks[name] / 1e6, 1),
        }
        for name, t in times.items()
    ]
    keep("cold_start", rows)


def started(code: str) -> str:
    """Run Python code in a fresh process and give what it says on stderr."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tempfile.gettempdir(), check=True)
    return done.stderr


if __name__ == "__main__":
    main()
