"""INT8 over fp32 in ONNX Runtime: batch 1, one thread, interleaved, by the default command.

    python benchmarks/int8_speed.py [--out NAME] [MODEL ...]

Each model is trained for one epoch on the embedded data (speed does not depend on the weights' quality), exported
with `--int8 --allow-slower --allow-drop` and measured three times; a row gives the ratio of medians of each
repetition, and what the verdict would have been. 5.9 is not trained: its graph has the weights it starts with, and
is calibrated and judged on 100 images of each split.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import keep

from qdeploy.bench import BenchConfig, BenchReport, bench
from qdeploy.data.catalog import load_dataset
from qdeploy.export import ExportConfig, ExportReport, export, export_module
from qdeploy.models.registry import create_model
from qdeploy.training import config_from_recipe, train

MODELS = (
    "nano",
    "nano-r",
    "nano-a",
    "nano-ar",
    "micro",
    "micro-r",
    "torchvision/resnet18",
    "timm/mobilenetv3_small_050",
    "mobilevit-depthwise-separable-v2",
    "qonstraint-5.9-sota",
)
UNTRAINED = ("qonstraint-5.9-sota",)
FEW = 100
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--out", default="int8_speed", help="name of the results")
    given = parser.parse_args()
    rows = []
    for name in given.models:
        with tempfile.TemporaryDirectory() as folder:
            report = exported(name, Path(folder))
            files = [Path(a.path) for a in report.artifacts]
            reports = [bench(files, BenchConfig(runs=1000, seconds=60, details=False)) for _ in range(REPEATS)]
        rows.append(row(name, reports, report))
        print(rows[-1], flush=True)
    keep(given.out, rows, threads=1, batch=1)


def exported(name: str, folder: Path) -> ExportReport:
    config = ExportConfig(int8=True, allow_drop=True, allow_slower=True)
    if name in UNTRAINED:
        data = load_dataset()
        few = {name: split.take(np.arange(FEW)) for name, split in data.splits.items()}
        data = replace(data, splits=few)
        torch.manual_seed(0)
        module = create_model(name, len(data.classes))
        return export_module(module, data.classes, data.preprocessing, data, folder / "export", config=config)
    run = train(config_from_recipe("small", model=name, epochs=1), folder / "run")
    return export(Path(run.run), config, folder / "export")


def row(name: str, reports: list[BenchReport], exported: ExportReport) -> dict[str, Any]:
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
        "float_layers": exported.artifacts[1].float_layers,
        "sqnr_db": round(exported.artifacts[1].parity.sqnr_db, 1),
        "verdict": exported.verdict,
    }


if __name__ == "__main__":
    main()
