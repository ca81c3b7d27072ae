"""The piece engines: nano as TensorRT engines and with ONNX Runtime's GPU providers, where such is installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

from campaign.results import Cell, Row
from campaign.sizes import Size
from campaign.training import is_complete, preset_options, run_folder, run_qdeploy, training_row
from qdeploy.bench import latency_summary, sample_images, time_rounds
from qdeploy.core.artifact import Artifact, read_artifact
from qdeploy.core.errors import ArtifactError, MissingDependencyError, VerdictError
from qdeploy.core.metrics import sqnr_db
from qdeploy.data.embedded import NAME as EMBEDDED
from qdeploy.export.engines.build import build_engine
from qdeploy.runtime.session import Session, engines_for, open_session


def engine_cells(size: Size, work: Path) -> dict[str, Cell]:
    builders: dict[str, Callable[[Path], Row]] = {
        "tensorrt": partial(build_with_library, "tensorrt"),
        "tensorrt_rtx": partial(build_with_library, "tensorrt_rtx"),
        "trtexec": build_with_trtexec,
        "ort-cuda": partial(run_with_provider, "ort-cuda"),
        "ort-tensorrt": partial(run_with_provider, "ort-tensorrt"),
    }
    return {
        f"{name}, {file}": partial(engine_row, build, file, size, work)
        for name, build in builders.items()
        for file in ("model.fp32.onnx", "model.fp16.onnx", "model.int8.tensorrt.onnx")
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
        run_qdeploy(["export", str(run), "--int8", "--fp16", "--target", "tensorrt", "--out", str(export)], 600)
    return {"model": model, "precision": file.split(".")[1], "onnx_bytes": (export / file).stat().st_size} | build(
        export / file
    )


def build_with_library(name: str, file: Path) -> Row:
    """Build an engine with TensorRT's or TensorRT-RTX's Python library; where it runs, compare and time it."""
    artifact = read_artifact(file)
    begin = perf_counter()
    try:
        data = build_engine(artifact.data, artifact.card, name, max_batch=32)
    except MissingDependencyError as error:
        return {"unavailable": str(error)}
    except VerdictError as error:
        return {"refused": str(error)}
    row: Row = {"engine_bytes": len(data), "build_s": round(perf_counter() - begin, 2), "n": 1}
    path = file.with_suffix(f".{name}.engine")
    path.write_bytes(data)
    built = replace(read_artifact(path), path=Path(path.name))
    try:
        with open_session(built, engines_for(built)[0], selftest=False) as session:
            return row | measured(artifact, session)
    except (MissingDependencyError, ArtifactError) as error:
        return row | {"not_run": str(error)}


def run_with_provider(name: str, file: Path) -> Row:
    """Open an ONNX file with one of ONNX Runtime's GPU providers, compare and time it."""
    artifact = replace(read_artifact(file), path=Path(file.name))
    try:
        with open_session(artifact, name) as session:
            return measured(artifact, session)
    except MissingDependencyError as error:
        return {"unavailable": str(error)}
    except ArtifactError as error:
        return {"refused": str(error)}


def measured(artifact: Artifact, session: Session) -> Row:
    """Compare an engine with its ONNX file in ONNX Runtime on the CPU, and time both."""
    images = sample_images(artifact.card.preprocessing)
    with open_session(artifact) as reference:
        found = sqnr_db(reference.infer(images)[0], session.infer(images)[0])
        rounds = time_rounds([session, reference], [images, images], runs=1000, seconds=60.0)
    p50 = [latency_summary([t for block in r for t in block])["p50"] for r in rounds]
    return {"engine": session.engine, "sqnr_db": round(found, 1), "p50_ms": p50[0], "onnxruntime_cpu_p50_ms": p50[1]}


def build_with_trtexec(file: Path) -> Row:
    """Build and time an engine with TensorRT's own tool."""
    if shutil.which("trtexec") is None:
        return {"unavailable": "the tool trtexec is not installed here"}
    command = ["trtexec", f"--onnx={file.name}", "--shapes=image:1x64x64x3", "--stronglyTyped", "--duration=5"]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, timeout=300)
    kept = ("Throughput:", "Latency:", "GPU Compute Time:", "Engine built in")
    lines = [line.partition("[I] ")[2] for line in done.stdout.splitlines() if any(word in line for word in kept)]
    return {"command": " ".join(command), "exit_code": done.returncode, "lines": lines}
