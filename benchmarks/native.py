"""The native engine against ONNX Runtime: batch 1, one thread, paired and interleaved, in one process.

    python benchmarks/native.py [--tier avx2] [MODEL ...]

``shipped`` is the model in the package; of the others the weights are random and the norms are not trivial, which
changes no speed. Every round calls each contender once, after one call that is not timed; the ratios are of the
medians and of the tenth percentiles of the same rounds. ``target`` is what the file is made for: exports here are for
this machine's CPU, and the shipped file is for CPUs with VNNI; without it ONNX Runtime runs that file by its exact and
slower kernels. Both are called as a user's Python calls them: through their
sessions, with the overhead of each.

``least_us`` is what the model's products alone take at the speed of this CPU's dot-product instruction, which is
measured too (``roofline.py``): kernels that multiply directly with it cannot be faster. ``ratio_at_most`` is how many
times as fast as ONNX Runtime that would be; it is left out with ``--tier``, whose instruction is not ONNX Runtime's.
``native_profile.py`` says what each operator costs.

``mlperf/...`` are the two networks for images of MLPerf Tiny by their published descriptions, with random weights: a
ResNet of 8 layers for 32x32 pixels and a MobileNet of width 0.25 for 96x96.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import keep
from mlperf_tiny import SIZES, tiny
from roofline import INSTRUCTIONS, least_us, peaks

from qdeploy.core.artifact import SHIPPED, Artifact, read_artifact
from qdeploy.core.errors import QdeployError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.catalog import load_dataset
from qdeploy.export import ExportConfig, export_module
from qdeploy.export.int8.float_choice import SearchConfig
from qdeploy.models.registry import create_model
from qdeploy.native.source import model_source, program_of
from qdeploy.runtime.engines.native_session import Model, NativeSession
from qdeploy.runtime.session import Session, open_session

MODELS = (
    *("shipped", "nano-a", "nano-ar", "micro", "torchvision/resnet18", "torchvision/mobilenet_v2"),
    *("mlperf/resnet8", "mlperf/mobilenet_v1_025"),
)
FEW = 100
ROUNDS = 1500
QUICK = SearchConfig(modules=4, roles=2, runs=10, repeats=1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--tier", help="the kernels to run instead of the fastest ones that this CPU has")
    words = parser.parse_args()
    tier = words.tier or Model(read_artifact(SHIPPED / "model.int8.onnx")).tier
    peak = peaks(tier) if tier in INSTRUCTIONS else {}
    rows = [row(name, peak, words.tier) for name in words.models]
    found = {"products_in_a_us": {kind: round(value) for kind, value in peak.items()}}
    found |= {"threads": 1, "batch": 1, "rounds": ROUNDS}
    for made in rows:
        if "at_peak" in made:
            print(f"{made['model']}: {made['at_peak']} of what this CPU's instruction allows")
    keep(f"native_{words.tier}" if words.tier else "native", rows, **found)


class Tier(Model):
    """A compiled model that runs kernels of a name."""

    def __init__(self, artifact: Artifact, name: str) -> None:
        self.name = name
        super().__init__(artifact)

    def _new(self) -> tuple[Any, object]:
        context, memory = super()._new()
        if self._library.qdeploy_native_init(context, context.arena, self._size, self.name.encode()):
            raise SystemExit(f"this CPU has no kernels '{self.name}'")
        return context, memory


def row(name: str, peak: dict[str, float], tier: str | None = None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        artifact = read_artifact(SHIPPED / "model.int8.onnx" if name == "shipped" else exported(name, Path(folder)))
        begin = time.perf_counter()
        try:
            sessions = {engine: open_session(artifact, engine, threads=1) for engine in ("ort", "native")}
        except QdeployError as error:
            return {"model": name, "refused": str(error)}
        opened_s = time.perf_counter() - begin
        if tier:
            sessions["native"] = NativeSession(artifact, 1)
            sessions["native"]._opened = Tier(artifact, tier)
            sessions["native"].engine = f"native C, {tier} kernels"
    times = measured(sessions, artifact)
    source = model_source(artifact)
    engines = {f"{engine}_runs": session.engine for engine, session in sessions.items()}
    found: dict[str, Any] = {"model": name, "target": artifact.card.target, **engines}
    for engine, values in times.items():
        found[f"{engine}_us"] = {p: round(float(np.percentile(values, q)), 1) for p, q in (("p10", 10), ("p50", 50))}
    for p, q in (("p10", 10), ("p50", 50)):
        found[f"ratio_{p}"] = round(float(np.percentile(times["ort"], q) / np.percentile(times["native"], q)), 2)
    ort_us, native_us = (found[f"{engine}_us"]["p50"] for engine in ("ort", "native"))
    if peak:
        found |= least_us(program_of(artifact), peak)
        found["at_peak"] = f"{100 * found['least_us'] / native_us:.0f} %"
        if not tier:
            found["ratio_at_most"] = round(ort_us / found["least_us"], 2)
    db = artifact.card.goldens.sqnr_db(sessions["native"].infer(images(artifact))[0].tolist())
    found["logits_db"] = round(db, 1) if math.isfinite(db) else "the same bits"
    return {
        **found,
        "arena_bytes": source.arena_bytes,
        "constant_bytes": source.constant_bytes,
        "compiled_and_opened_s": round(opened_s, 1),
    }


def images(artifact: Artifact) -> Any:
    return artifact.card.goldens.images


def measured(sessions: dict[str, Session], artifact: Artifact) -> dict[str, list[float]]:
    one = np.ascontiguousarray(images(artifact)[:1])
    times: dict[str, list[float]] = {engine: [] for engine in sessions}
    for _ in range(ROUNDS):
        for engine, session in sessions.items():
            session.infer(one)
            begin = time.perf_counter_ns()
            session.infer(one)
            times[engine].append((time.perf_counter_ns() - begin) / 1e3)
    return times


def exported(name: str, folder: Path) -> Path:
    rules = Preprocessing(size=SIZES.get(name, 64))
    data = load_dataset(preprocessing=rules)
    data = replace(data, splits={split: d.take(np.arange(FEW)) for split, d in data.splits.items()})
    torch.manual_seed(0)
    module = tiny(name, len(data.classes)) if name in SIZES else create_model(name, len(data.classes))
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            with torch.no_grad():
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.2)
                part.running_mean.normal_(0, 0.2)
                part.running_var.uniform_(0.5, 1.5)
    config = ExportConfig(int8=True, allow_drop=True, allow_slower=True, search=QUICK)
    export_module(module, data.classes, data.preprocessing, data, folder / "export", config=config)
    return folder / "export" / "model.int8.onnx"


if __name__ == "__main__":
    main()
