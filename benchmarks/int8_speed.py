"""INT8 over fp32 in ONNX Runtime: batch 1, one thread, interleaved, for the small presets.

    python benchmarks/int8_speed.py [MODEL ...]

Each model is trained for one epoch on the embedded data (speed does not depend on the weights' quality), exported
with `--int8` and measured three times; a row gives the ratio of medians of each repetition.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import keep

from qdeploy.export.made import ExportConfig
from qdeploy.export.pipeline import export
from qdeploy.runtime.bench import BenchConfig, BenchReport, bench
from qdeploy.training import config_from_recipe, train

MODELS = ("nano", "nano-r", "nano-a", "nano-ar", "micro", "micro-r")
REPEATS = 3


def main() -> None:
    rows = []
    for name in sys.argv[1:] or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            run = train(config_from_recipe("small", model=name, epochs=1), Path(folder) / "run")
            report = export(Path(run.run), ExportConfig(int8=True, max_drop=100), Path(folder) / "export")
            files = [Path(a.path) for a in report.artifacts]
            reports = [bench(files, BenchConfig(runs=1000, seconds=60)) for _ in range(REPEATS)]
        rows.append(row(name, reports, report.artifacts[1].float_layers, report.artifacts[1].parity["sqnr_db"]))
        print(rows[-1], flush=True)
    keep("int8_speed", rows, threads=1, batch=1)


def row(name: str, reports: list[BenchReport], float_layers: str, sqnr_db: float) -> dict[str, Any]:
    fp32, int8 = ([r.results[i] for r in reports] for i in (0, 1))
    return {
        "model": name,
        "fp32_p50_ms": [round(r.latency_ms["p50"] or 0, 4) for r in fp32],
        "int8_p50_ms": [round(r.latency_ms["p50"] or 0, 4) for r in int8],
        "ratio": [round(r.comparisons[0].ratio, 3) for r in reports],
        "ratio_ci95": [[round(v, 3) for v in r.comparisons[0].ci95] for r in reports],
        "n": [r.n for r in int8],
        "fp32_kB": round(fp32[0].model_bytes / 1e3),
        "int8_kB": round(int8[0].model_bytes / 1e3),
        "float_layers": float_layers,
        "sqnr_db": round(sqnr_db, 1),
    }


if __name__ == "__main__":
    main()
