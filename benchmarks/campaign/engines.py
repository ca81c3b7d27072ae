"""The piece engines: nano as TensorRT engines, where such a tool is installed."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter

from campaign.results import Cell, Row
from campaign.sizes import Size
from campaign.training import is_complete, preset_options, run_folder, run_qdeploy, training_row
from qdeploy.data.embedded import NAME as EMBEDDED


def engine_cells(size: Size, work: Path) -> dict[str, Cell]:
    builders: dict[str, Callable[[Path], Row]] = {
        "tensorrt": partial(build_with_library, "tensorrt"),
        "tensorrt_rtx": partial(build_with_library, "tensorrt_rtx"),
        "trtexec": build_with_trtexec,
    }
    return {
        f"{name}, {file}": partial(engine_row, build, file, size, work)
        for name, build in builders.items()
        for file in ("model.fp32.onnx", "model.int8.tensorrt.onnx")
    }


def engine_row(build: Callable[[Path], Row], file: str, size: Size, work: Path, seconds: float) -> Row | None:
    model, export = size.presets[0], work / "engine_export"
    run = run_folder(work, preset_options(model, size))
    if not is_complete(run):  # an engine's size and speed do not depend on how well its model is trained
        options = ["--model", model, "--epochs", "1"]
        run = run_folder(work, options)
        if training_row(EMBEDDED, options, work, seconds) is None:
            return None
    if not (export / file).exists():
        run_qdeploy(["export", str(run), "--int8", "--target", "tensorrt", "--out", str(export)], 600)
    return {"model": model, "precision": file.split(".")[1], "onnx_bytes": (export / file).stat().st_size} | build(
        export / file
    )


def build_with_library(name: str, file: Path) -> Row:
    """Build an engine for batches of 1 to 32 with TensorRT's or TensorRT-RTX's Python library."""
    if importlib.util.find_spec(name) is None:
        return {"unavailable": f"the Python library {name} is not installed here"}
    trt = importlib.import_module(name)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    if not builder:
        return {"unavailable": f"{name} {trt.__version__} cannot build here"}
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(file.read_bytes()):
        return {"library": f"{name} {trt.__version__}", "refused": parser.get_error(0).desc()}
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    height, width, colours = network.get_input(0).shape[1:]
    profile.set_shape("image", *((batch, height, width, colours) for batch in (1, 1, 32)))
    config.add_optimization_profile(profile)
    begin = perf_counter()
    plan = builder.build_serialized_network(network, config)
    return {
        "library": f"{name} {trt.__version__}",
        "built": plan is not None,
        "engine_bytes": plan.nbytes if plan is not None else None,
        "build_s": round(perf_counter() - begin, 2),
        "n": 1,
    }


def build_with_trtexec(file: Path) -> Row:
    """Build and time an engine with TensorRT's own tool."""
    if shutil.which("trtexec") is None:
        return {"unavailable": "the tool trtexec is not installed here"}
    command = ["trtexec", f"--onnx={file.name}", "--shapes=image:1x64x64x3", "--stronglyTyped", "--duration=5"]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, timeout=300)
    kept = ("Throughput:", "Latency:", "GPU Compute Time:", "Engine built in")
    lines = [line.partition("[I] ")[2] for line in done.stdout.splitlines() if any(word in line for word in kept)]
    return {"command": " ".join(command), "exit_code": done.returncode, "lines": lines}
