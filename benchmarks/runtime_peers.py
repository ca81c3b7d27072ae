"""JPEG in, label out: qdeploy beside what people use, with the same network and images.

    python benchmarks/runtime_peers.py [--runs 1000]

A nano is trained for two epochs on the embedded data and exported; every contender (`contenders.py`) classifies the
same 64 JPEG files of 96x96 pixels with these weights. Each lives in a process of its own, and the processes work in
turn, ten images at a time, so that what else runs on the machine hits all alike; a ratio is the median over these
rounds, with its bootstrapped 95 % interval. Threads are what each takes by itself. Peak memory is that of the process
after 65 images. Cold start is a fresh process with one answer, to its end, nine times in turn, for qdeploy and
Ultralytics by their own commands; the native engine's library is compiled by then, which is no part of it. Installed
size is that of the package with all it requires. OpenVINO, timm and Ultralytics are measured if they are installed.
"""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from contenders import CONTENDERS, SIZE
from machine import keep
from PIL import Image
from safetensors.torch import load as load_tensors
from torch import nn

import qdeploy
from qdeploy.bench import compare
from qdeploy.core.metrics import MIN_SAMPLES, percentile
from qdeploy.core.run_folder import read_run
from qdeploy.data.embedded import embedded_source
from qdeploy.export import ExportConfig, export
from qdeploy.models.registry import model_from_record
from qdeploy.training import config_from_recipe, train

BLOCK = 10
COLD_STARTS = 9
NUM_IMAGES = 64
SIDE = 96
WARMUP = 100
NEEDED = {
    "qdeploy_int8": "qdeploy",
    "qdeploy_native": "qdeploy",
    "qdeploy_fp32": "qdeploy",
    "qdeploy_openvino": "openvino",
    "torch_eager": "torchvision",
    "torch_compile": "torchvision",
}
"""The library of a contender that is not named after it."""
SIZE_OF = """
import importlib.metadata as m, json, re, sys
seen, todo = set(), sys.argv[1:]
while todo:
    name = re.split(r"[ ;<>=!~\\[(]", todo.pop())[0].lower().replace("_", "-")
    if name in seen:
        continue
    try:
        needs = m.distribution(name).requires or []
    except m.PackageNotFoundError:
        continue
    seen.add(name)
    todo += [r for r in needs if "extra ==" not in r]
files = [f.locate() for n in seen for f in m.distribution(n).files or []]
print(sum(f.stat().st_size for f in files if f.is_file()))
"""
INSTALLS = {
    "qdeploy_int8": ["numpy", "pillow", "onnxruntime", "typer", "rich"],
    "qdeploy_native": ["numpy", "pillow", "onnxruntime", "typer", "rich"],
    "qdeploy_fp32": ["numpy", "pillow", "onnxruntime", "typer", "rich"],
    "qdeploy_openvino": ["numpy", "pillow", "onnxruntime", "typer", "rich", "openvino"],
    "onnxruntime": ["pillow", "onnxruntime"],
    "openvino": ["pillow", "openvino"],
    "torch_eager": ["torch", "torchvision"],
    "torch_compile": ["torch", "torchvision"],
    "timm": ["timm"],
    "ultralytics": ["ultralytics", "onnxruntime"],
}


@dataclass(kw_only=True)
class Contender:
    """A running process."""

    name: str
    process: subprocess.Popen[str]
    ready: dict[str, Any]
    rounds: list[list[float]]

    def run(self, count: int) -> list[float]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class Plain(nn.Module):
    """Float images in, probabilities out; ``mean`` and ``std`` are what is left to normalise."""

    def __init__(self, model: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model((images - self.mean) / self.std).softmax(-1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        contenders = [start(n, folder) for n in CONTENDERS if importlib.util.find_spec(NEEDED.get(n, n)) is not None]
        for contender in contenders:
            contender.run(WARMUP)
        for _ in range(-(-given.runs // BLOCK)):
            for contender in contenders:
                contender.rounds.append(contender.run(BLOCK))
        for contender in contenders:
            contender.process.terminate()
            contender.process.wait()
        colds = cold_starts(contenders, folder)
    rows = [row(c, contenders[0], colds[c.name]) for c in contenders]
    keep("runtime_peers", rows, images=f"{NUM_IMAGES} JPEG files of {SIDE}x{SIDE} pixels", cold_starts=COLD_STARTS)


def prepare(folder: Path) -> None:
    """Write the images, the weights, and the graphs: qdeploy's two, and those that other tools expect."""
    (folder / "images").mkdir()
    for i, record in enumerate(embedded_source().records["test"][:NUM_IMAGES]):
        stream = io.BytesIO()
        Image.fromarray(np.asarray(record.image())).convert("RGB").resize((SIDE, SIDE)).save(stream, "JPEG", quality=90)
        (folder / "images" / f"{i:03d}.jpg").write_bytes(stream.getvalue())
    run = Path(train(config_from_recipe("small", model="nano", epochs=2), folder / "run").run)
    export(run, ExportConfig(int8=True, allow_slower=True, allow_drop=True), folder / "export")
    for file in (folder / "export").glob("*.onnx"):
        file.rename(folder / file.name)
    record, weights = read_run(run)
    record.save(folder)
    (folder / "model.safetensors").write_bytes(weights)
    model = model_from_record(record.model.family, record.model.config)
    model.load_state_dict(load_tensors(weights))
    rules = record.preprocessing
    write_plain(Plain(model, [0.0] * 3, [1.0] * 3).eval(), folder / "nchw.onnx")
    write_plain(Plain(model, list(rules.mean), list(rules.std)).eval(), folder / "unit.onnx")


def write_plain(model: nn.Module, file: Path) -> None:
    """Trace as other tools do, with the metadata that Ultralytics reads."""
    program = torch.onnx.export(
        model,
        (torch.zeros(1, 3, SIZE, SIZE),),
        dynamo=True,
        input_names=["images"],
        output_names=["output0"],
        verbose=False,
    )
    assert program is not None
    graph = program.model_proto
    names = {k: str(k) for k in range(graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value)}
    facts = {"task": "classify", "stride": 1, "batch": 1, "imgsz": [SIZE, SIZE], "names": names}
    onnx.helper.set_model_props(graph, {k: str(v) for k, v in facts.items()})
    onnx.save(graph, str(file))


def start(name: str, folder: Path) -> Contender:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("contenders.py")), name, str(folder)],
        env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    line = process.stdout.readline()
    if not line.startswith("{"):
        sys.exit(f"{name} does not run; see: {' '.join(map(str, process.args))}")
    print(f"{name}: ready after {json.loads(line)['ready_s']:.2f} s", flush=True)
    return Contender(name=name, process=process, ready=json.loads(line), rounds=[])


def cold_starts(contenders: list[Contender], folder: Path) -> dict[str, list[float]]:
    """Time fresh processes with one answer, in turn."""
    compileall.compile_dir(Path(qdeploy.__file__).parent, quiet=1)  # as installing does
    image = str(next((folder / "images").iterdir()))
    commands = {
        c.name: [sys.executable, str(Path(__file__).with_name("contenders.py")), c.name, str(folder), "--once"]
        for c in contenders
    }
    predict = [sys.executable, "-m", "qdeploy", "predict", image, "--model"]
    commands["qdeploy_int8"] = [*predict, str(folder / "model.int8.onnx")]
    commands["qdeploy_native"] = [*predict, str(folder / "model.int8.onnx"), "--engine", "native"]
    commands["qdeploy_fp32"] = [*predict, str(folder / "model.fp32.onnx")]
    if "ultralytics" in commands:
        yolo = [sys.executable, "-c", "from ultralytics.cfg import entrypoint; entrypoint()", "classify", "predict"]
        commands["ultralytics"] = [*yolo, f"model={folder / 'unit.onnx'}", f"source={image}", "imgsz=64", "device=cpu"]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(COLD_STARTS):
        for name, command in commands.items():
            begin = time.perf_counter()
            subprocess.run(command, capture_output=True, cwd=folder, check=True)
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def row(contender: Contender, ours: Contender, colds: list[float]) -> dict[str, Any]:
    samples = [t for block in contender.rounds for t in block]
    speed = compare(ours.name, contender.name, ours.rounds, contender.rounds)
    same = np.mean([a == b for a, b in zip(contender.ready["answers"], ours.ready["answers"], strict=True)])
    return {
        "contender": contender.name,
        "p50_ms": round(percentile(samples, 50), 3),
        "p99_ms": round(percentile(samples, 99), 3) if len(samples) >= MIN_SAMPLES[99] else None,
        "n": len(samples),
        "qdeploy_int8_is_faster_by": round(speed.ratio, 2),
        "ci95": [round(v, 2) for v in speed.ci95],
        "same_answers": round(float(same), 3),
        "peak_MB": round(contender.ready["peak_bytes"] / 1e6),
        "cold_start_s": round(statistics.median(colds), 3),
        "cold_start_range_s": [round(min(colds), 3), round(max(colds), 3)],
        "installed_MB": round(installed_bytes(contender) / 1e6),
    }


def installed_bytes(contender: Contender) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SIZE_OF, *INSTALLS[contender.name]], capture_output=True, text=True, check=True
    )
    return int(done.stdout) + (package_bytes() if contender.name.startswith("qdeploy") else 0)


def package_bytes() -> int:
    return sum(p.stat().st_size for p in Path(qdeploy.__file__).parent.rglob("*") if p.is_file() and p.suffix != ".pyc")


if __name__ == "__main__":
    main()
