"""The engine step: TensorRT engines of the exported graphs, checked wherever they can run."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qdeploy.core.artifact import read_artifact
from qdeploy.core.errors import ArtifactError, MissingDependencyError, VerdictError
from qdeploy.core.files import sha256_of, write_bytes
from qdeploy.core.metrics import measure
from qdeploy.data.places import cache_folder
from qdeploy.export.engines.build import build_engine
from qdeploy.export.finish import Made, Work
from qdeploy.export.graph.parity import run_session
from qdeploy.runtime.session import ENGINES, engines_for, open_session

SHORT_NAMES = {"tensorrt": "trt", "tensorrt_rtx": "rtx"}


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """One engine file."""

    path: str
    builder: str
    precision: str
    source: str
    """Name of the ONNX file that the engine was built from."""
    size_bytes: int
    sha256: str
    build_s: float
    ran: bool
    """Whether it was opened and run here: a built engine is not yet a right one."""
    note: str
    """Why it was not run, or an empty text."""
    parity: dict[str, Any] | None
    """Agreement with the ONNX file that it was built from; None where the engine did not run."""


def build_engines(work: Work, made: list[Made], folder: Path, out: Path) -> tuple[EngineReport, ...]:
    """Build the engines asked for, of every graph that TensorRT takes, into a folder.

    Raises:
        MissingDependencyError: If the builder or its GPU is missing.
        VerdictError: If a graph is refused, or an engine answers otherwise than its ONNX file.
        EngineError: If an engine fails on the GPU it was built for.
    """
    fit = [m for m in made if m.card.target in ("float", "tensorrt")]
    return tuple(_engine(work, m, builder, folder, out) for builder in work.config.builders for m in fit)


def _engine(work: Work, made: Made, builder: str, folder: Path, out: Path) -> EngineReport:
    begin = time.perf_counter()
    timings = cache_folder() / "tensorrt.timings" if builder == "tensorrt" else None
    data = build_engine(made.data, made.card, builder, timing_cache=timings)
    seconds = time.perf_counter() - begin
    file = folder / f"model.{made.card.precision}.{SHORT_NAMES[builder]}.engine"
    write_bytes(file, data)
    ran, note, parity = True, "", None
    artifact = replace(read_artifact(file), path=Path(file.name))  # whose folder is a temporary one
    (engine,) = engines_for(artifact)
    least_db = min(made.card.goldens.min_sqnr_db, ENGINES[engine].least_db(made.card.precision))
    try:
        with open_session(artifact, engine, selftest=False) as session:
            parity = measure(made.parity_logits, run_session(session, work.parity_pixels))
    except (MissingDependencyError, ArtifactError) as error:  # no GPU, or another than those it was built for
        ran, note = False, str(error)
    if parity is not None and not parity.sqnr_db >= least_db:
        raise VerdictError(
            f"parity failed at '{made.file} to {file.name}': {parity.sqnr_db:.1f} dB on {parity.n} images, at least "
            f"{least_db:.0f} dB is required; nothing was exported"
        )
    work.note(
        f"{file.name}: built in {seconds:.1f} s, "
        + (f"{parity.sqnr_db:.1f} dB against {made.file}" if parity else "not run here")
    )
    return EngineReport(
        path=str(out / file.name),
        builder=builder,
        precision=made.card.precision,
        source=made.file,
        size_bytes=len(data),
        sha256=sha256_of(data),
        build_s=seconds,
        ran=ran,
        note=note,
        parity=parity.to_dict() if parity else None,
    )
