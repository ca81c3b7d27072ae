"""Engine files from ONNX files, with TensorRT or TensorRT-RTX.

Both packages take the same path. Every precision is that of the graph: networks are strongly typed, INT8 is explicit
Q/DQ, fp16 is a graph of fp16 tensors (``qdeploy.export.graph.fp16``). TensorRT builds for the GPU it runs on;
TensorRT-RTX builds ahead of time, without a GPU, and compiles when the engine is opened.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdeploy.core.card import Card
from qdeploy.core.engine_file import EngineHeader, pack
from qdeploy.core.errors import InputError, MissingDependencyError, VerdictError, near_miss
from qdeploy.core.files import sha256_of, write_bytes
from qdeploy.core.reasons import tensorrt_reason
from qdeploy.runtime.engines.tensorrt_library import find_gpu, first_error, load_package, messages

MAX_BATCH = 64
"""Device memory for this many images is taken when the engine is opened; larger batches are run in parts."""
LARGEST_BATCH = 4096


@dataclass(frozen=True, kw_only=True)
class Builder:
    """What differs between the two packages."""

    compute_capabilities: tuple[str, ...] = ()
    """GPUs it builds for; empty: the GPU of this machine."""
    platform: str = f"{platform.system()} {platform.machine()}"
    timing_cache: bool = False


BUILDERS = {
    "tensorrt": Builder(timing_cache=True),
    # its timing cache has no effect and would ask for a GPU
    "tensorrt_rtx": Builder(
        compute_capabilities=("8.0", "8.6", "8.9", "12.0"), platform=f"Linux and Windows {platform.machine()}"
    ),
}
"""Each builder by the name of its Python package."""


def build_engine(
    onnx_file: bytes, card: Card, builder: str, *, max_batch: int = MAX_BATCH, timing_cache: Path | None = None
) -> bytes:
    """Build an engine file.

    Args:
        onnx_file: A model file's bytes.
        card: The model file's card.
        builder: A key of ``BUILDERS``.
        max_batch: Largest batch of one inference; the engine is tuned for single images.
        timing_cache: Where TensorRT keeps the timings of its kernels, to build faster the next time.

    Raises:
        InputError: If the builder is unknown or an argument does not fit it.
        MissingDependencyError: If the package, or the GPU that TensorRT needs to build, is missing.
        VerdictError: If the package refuses the graph.
    """
    if builder not in BUILDERS:
        raise InputError(
            f"there is no builder '{builder}'{near_miss(builder, BUILDERS)}", fix=f"known: {', '.join(BUILDERS)}"
        )
    if not 1 <= max_batch <= LARGEST_BATCH:
        raise InputError(f"an engine's largest batch must be between 1 and {LARGEST_BATCH}", found=max_batch)
    if timing_cache and not BUILDERS[builder].timing_cache:
        raise InputError(f"{builder} has no timing cache", fix="build without one")
    package = load_package(builder)
    header = EngineHeader(
        builder=builder,
        builder_version=package.__version__,
        compute_capabilities=BUILDERS[builder].compute_capabilities or _this_gpu(builder),
        platform=BUILDERS[builder].platform,
        min_batch=1,
        opt_batch=1,
        max_batch=max_batch,
        precision=card.precision,
        source_sha256=sha256_of(onnx_file),
        card=card.to_dict(),
    )
    return pack(header, _plan(package, header, onnx_file, card.preprocessing.size, timing_cache))


def require_builder(builder: str) -> None:
    """Check that a builder can build here, before any long work.

    Raises:
        MissingDependencyError: If its package, or the GPU it needs to build, is missing.
    """
    load_package(builder)
    if not BUILDERS[builder].compute_capabilities:
        _this_gpu(builder)


def _this_gpu(builder: str) -> tuple[str, ...]:
    try:
        return (find_gpu().compute_capability,)
    except MissingDependencyError as error:
        raise MissingDependencyError(
            f"{builder} builds only on the GPU that will run the engine, and here is no usable one ({error})",
            fix="build there, or with `tensorrt_rtx`, which needs none",
        ) from error


def _plan(package: Any, header: EngineHeader, onnx_file: bytes, size: int, timing_cache: Path | None) -> bytes:
    first_error(header.builder)  # forgets old ones
    builder = package.Builder(messages(header.builder))
    network = _parsed(package, builder, header, onnx_file)
    config = builder.create_builder_config()
    config.clear_flag(package.BuilderFlag.TF32)  # it would round inputs of float32 products to 10 bits, unasked
    profile = builder.create_optimization_profile()
    batches = (header.min_batch, header.opt_batch, header.max_batch)
    profile.set_shape("image", *((batch, size, size, 3) for batch in batches))
    config.add_optimization_profile(profile)
    if timing_cache:
        read_timings(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise VerdictError(f"{_named(header)} cannot build the graph: {first_error(header.builder)}", fix=_REMEDY)
    if timing_cache:
        timing_cache.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(timing_cache, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _parsed(package: Any, builder: Any, header: EngineHeader, onnx_file: bytes) -> Any:
    """Parse a graph into a strongly typed network; TensorRT 10 has to be asked, later ones know no other."""
    typed = getattr(package.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = package.OnnxParser(network, messages(header.builder))
    if not parser.parse(onnx_file):
        if not parser.num_errors:
            raise VerdictError(f"{_named(header)} refuses the graph: {first_error(header.builder)}", fix=_REMEDY)
        error = parser.get_error(0)
        what = tensorrt_reason(error.desc())
        raise VerdictError(
            f"{_named(header)} refuses the graph at node '{error.node_name()}' ({error.node_operator()}): {what}",
            fix=_REMEDY,
        )
    return network


_REMEDY = "export INT8 with `target=tensorrt`, or use the ONNX file"


def _named(header: EngineHeader) -> str:
    return f"{header.builder} {header.builder_version}"


def read_timings(config: Any, path: Path) -> None:
    """Hand the timings of an earlier build to the builder; none yet is an empty cache."""
    try:
        earlier = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise InputError(f"the timing cache {path} cannot be read: {error.strerror}") from error
    cache = config.create_timing_cache(earlier)
    if cache is None or not config.set_timing_cache(cache, False):
        raise InputError(f"the timing cache {path} is of another GPU or TensorRT, or damaged", fix="delete it")
