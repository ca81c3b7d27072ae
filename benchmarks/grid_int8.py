"""INT8 of every model of a sweep by the default command: the drop of accuracy, the speed, and the verdict.

    python benchmarks/grid_int8.py SWEEP_FOLDER [MODEL ...]

The trained runs of `qdeploy sweep` are exported again with `--int8`; a row says what the guard left in float, what
INT8 costs on the test split of the sweep's data, its speed over fp32 in interleaved runs, and the verdict. Rows are
kept as they come: a second call goes on where the first stopped.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import RESULTS, keep

from qdeploy.export import ExportConfig, ExportReport, export

NAME = "grid_int8"


def main(sweep: Path, models: list[str]) -> None:
    kept = RESULTS / f"{NAME}.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text())["rows"] if kept.is_file() else []
    for trial in sorted((sweep / "trials").iterdir()):
        runs = sorted(trial.glob("run-*"))
        if not runs or (models and trial.name not in models) or any(r["model"] == trial.name for r in rows):
            continue
        rows.append(row(trial.name, runs[-1]))
        print(rows[-1], flush=True)
        keep(NAME, rows, threads=1, batch=1)


def row(name: str, run: Path) -> dict[str, Any]:
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = export(run, ExportConfig(int8=True), Path(folder) / "export")
    return {"model": name, "seconds": round(time.perf_counter() - begin, 1), **facts(report)}


def facts(report: ExportReport) -> dict[str, Any]:
    speed, drop, int8 = report.comparison, report.difference, report.int8[0]
    assert speed
    assert drop
    return {
        "fp32_top1": report.artifacts[0].accuracy.top1,
        "drop_points": round(-drop.points, 2),
        "margin95": round(drop.margin95, 2),
        "n": drop.n,
        "times_fp32_speed": round(speed.ratio, 3),
        "ci95": [round(v, 3) for v in speed.ci95],
        "trials": len(int8.trials),
        "float_units": list(int8.float_units),
        "accepted": report.accepted,
        "verdict": report.verdict,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
