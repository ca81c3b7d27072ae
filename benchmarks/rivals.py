"""Small models of other projects beside ours: the same loop, the same CPU time, the same export, side by side.

    python benchmarks/rivals.py [--seconds 240] [--seeds 1] [NAME ...]

Every model is trained by benchmarks/plain_loop.py on the embedded 2,000 images for about so many seconds of one core
(a few timed steps set the epochs), scored on the 10,000 test images of the full Fashion-MNIST (which must be on the
machine), exported to fp32 and INT8 by qdeploy, and all files are timed in turn on one thread. `yolo11n-cls` needs
`pip install ultralytics`, `timm/...` needs `pip install timm`; what is not installed is left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import keep
from plain_loop import BATCH, train_plainly
from torch import Tensor, nn

from qdeploy.bench import BenchConfig, bench
from qdeploy.core.errors import MissingDependencyError, VerdictError
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset
from qdeploy.export import ExportConfig, export_module
from qdeploy.export.report.record import ArtifactReport
from qdeploy.models.registry import create_model

NAMES = (
    "nano", "nano-a", "nano-ar", "mobilevit-depthwise-separable-v2", "yolo11n-cls", "timm/mobilenetv3_small_050",
    "torchvision/mobilenet_v2",
)  # fmt: skip
PROBE_STEPS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--seconds", type=float, default=240.0, help="of training, per model and seed")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load_dataset()
    full = load_dataset("fashion-mnist")
    tested = replace(dataset, splits={**dataset.splits, "test": full.splits["test"]})
    with tempfile.TemporaryDirectory() as place:
        rows, files = [], []
        for name in arguments.names:
            made = [one_model(name, seed, arguments.seconds, tested, Path(place)) for seed in range(arguments.seeds)]
            if made[0] is None:
                continue
            rows.append(summary(name, [m for m in made if m]))
            files += [(rows[-1], path) for path in sorted((Path(place) / folder_of(name, 0)).glob("*.onnx"))]
            print(rows[-1], flush=True)
        report = bench([path for _, path in files], BenchConfig(runs=1000, seconds=300, details=False))
        for (row, _), result in zip(files, report.results, strict=True):
            row[f"{result.precision}_p50_ms"] = round(result.latency_ms["p50"] or 0, 4)
            row[f"{result.precision}_peak_MB"] = round(result.peak_rss_bytes / 1e6, 1)
            row["timed_runs"] = result.n
    keep("rivals", rows, seconds=arguments.seconds, threads=1, train_images=len(dataset.splits["train"]))


def one_model(name: str, seed: int, seconds: float, dataset: Dataset, place: Path) -> dict[str, Any] | None:
    torch.manual_seed(seed)
    try:
        model = build(name)
    except (MissingDependencyError, ImportError) as error:
        print(f"{name} left out: {error}", file=sys.stderr)
        return None
    train = dataset.splits["train"]
    epochs = max(1, round(seconds / (step_seconds(model) * (len(train) // BATCH))))
    torch.manual_seed(seed)
    model = build(name)
    begin = time.process_time()
    train_plainly(model, train, dataset.preprocessing, epochs)
    cpu_s = time.process_time() - begin
    made = {a.precision: a for a in exported(model, name, dataset, place / folder_of(name, seed))}
    fp32, int8 = made["fp32"], made.get("int8")
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "epochs": epochs,
        "cpu_s": round(cpu_s),
        "fp32_top1": fp32.accuracy.top1,
        "int8_top1": int8.accuracy.top1 if int8 else None,
        "test_n": fp32.accuracy.n,
        "fp32_kB": round(fp32.size_bytes / 1e3),
        "int8_kB": round(int8.size_bytes / 1e3) if int8 else None,
        "float_layers": int8.float_layers if int8 else None,
    }


def exported(model: nn.Module, name: str, dataset: Dataset, out: Path) -> tuple[ArtifactReport, ...]:
    """Export to fp32 and INT8; to fp32 alone if INT8 is rejected."""
    for int8 in (True, False):
        try:
            config = ExportConfig(int8=int8, allow_drop=True, allow_slower=True)
            labels, rules = dataset.classes, dataset.preprocessing
            return export_module(model, labels, rules, dataset, out, name=name, config=config).artifacts
        except VerdictError as error:
            print(f"{name}: {error}", file=sys.stderr)
    raise SystemExit(1)


def summary(name: str, made: list[dict[str, Any]]) -> dict[str, Any]:
    """One row over the seeds: lists where they differ, the mean of the accuracies beside them."""
    row: dict[str, Any] = {"model": name, "seeds": len(made)}
    for key in made[0]:
        values = [m[key] for m in made]
        row[key] = values if key in ("cpu_s", "epochs", "fp32_top1", "int8_top1", "float_layers") else values[0]
    for key in ("fp32_top1", "int8_top1"):
        known = [value for value in row[key] if value is not None]
        row[f"{key}_mean"] = round(statistics.fmean(known), 2) if known else None
    return row


def folder_of(name: str, seed: int) -> str:
    return f"{name.replace('/', '-')}-{seed}"


def build(name: str) -> nn.Module:
    if name == "yolo11n-cls":
        return Yolo()
    return create_model(name, 10)


class Yolo(nn.Module):
    """yolo11n-cls, its architecture only, giving logits in training and in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        from ultralytics.nn.tasks import ClassificationModel

        self.network = ClassificationModel("yolo11n-cls.yaml", nc=10, verbose=False)

    def forward(self, image: Tensor) -> Tensor:
        found = self.network(image)
        return found if isinstance(found, Tensor) else found[1]


def step_seconds(model: nn.Module) -> float:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9)
    image, labels = torch.randn(BATCH, 3, 64, 64), torch.zeros(BATCH, dtype=torch.long)
    model.train()
    times = []
    for _ in range(PROBE_STEPS):
        begin = time.process_time()
        nn.functional.cross_entropy(model(image), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - begin)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
