"""TensorRT and TensorRT-RTX on an NVIDIA GPU."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.artifact import Artifact
from qdeploy.core.engine_file import EngineHeader, unpack
from qdeploy.core.errors import ArtifactError, EngineError, MissingDependencyError
from qdeploy.runtime.engines.tensorrt_library import (
    Gpu,
    checked,
    find_gpu,
    first_error,
    load_cuda,
    load_package,
    messages,
)
from qdeploy.runtime.session import OTHER_ENGINE, Session

Floats = NDArray[np.float32]


NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
"""Name of each engine by its Python package."""


class TensorRtSession(Session):
    """A session of TensorRT or TensorRT-RTX, whichever built the engine file; see ``qdeploy.runtime.session.Session``.

    One GPU, one stream, one inference at a time; larger batches than the engine's are run in parts. The number of
    threads of the contract is of the CPU and means nothing here.

    What was executed: with TensorRT-RTX everything up to the first need of a GPU, its refusal included; the rest,
    from the transfers on, only against a stand-in for the device in the tests. No engine has run on a GPU yet, and
    TensorRT itself has not been loaded. The tests marked ``gpu`` do both where there is one.
    """

    def __init__(self, artifact: Artifact, threads: int) -> None:
        if artifact.engine is None:
            raise ArtifactError(
                f"{artifact.path} is an ONNX file, not an engine", fix="an export with `tensorrt` makes one"
            )
        header, plan = unpack(artifact.data)
        package = load_package(header.builder)
        gpu = _require_fit(artifact, header, package.__version__)
        log = messages(header.builder)
        first_error(header.builder)  # forgets old ones
        runtime = package.Runtime(log)
        engine = runtime.deserialize_cuda_engine(plan)
        context = engine.create_execution_context() if engine else None
        if context is None:
            raise _refusal(artifact, header, gpu)
        opened = _OnGpu(artifact, header, (context, engine, runtime, log))
        super().__init__(artifact, opened, f"{NAMES[header.builder]} {package.__version__}, {gpu.name}")

    def _infer(self, opened: _OnGpu, images_BSSC: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        return opened.run(images_BSSC)


class _OnGpu:
    """An execution context with its stream and its memory on the device, freed when nobody uses it any more."""

    def __init__(self, artifact: Artifact, header: EngineHeader, parts: tuple[Any, ...]) -> None:
        self._builder = header.builder
        self._max_batch = header.max_batch
        self._classes = len(artifact.card.labels)
        self._lock = threading.Lock()
        self._parts = list(parts)
        self._cuda = load_cuda()
        self._stream = checked(self._cuda, self._cuda.cudaStreamCreate())
        self._memory: dict[str, int] = {}
        weakref.finalize(self, _free, self._parts, self._cuda, self._memory, self._stream)
        size = artifact.card.preprocessing.size
        answer_bytes = self._max_batch * self._classes * 4
        for name, size_bytes in {
            "image": self._max_batch * size * size * 3,
            "logits": answer_bytes,
            "probabilities": answer_bytes,
        }.items():
            self._memory[name] = int(checked(self._cuda, self._cuda.cudaMalloc(size_bytes)))
            parts[0].set_tensor_address(name, self._memory[name])

    def run(self, images_BSSC: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Return logits and probabilities ``[B, K]``."""
        logits = np.empty((len(images_BSSC), self._classes), np.float32)
        probabilities = np.empty_like(logits)
        with self._lock:
            for i in range(0, len(images_BSSC), self._max_batch):
                part = slice(i, i + self._max_batch)
                self._run(images_BSSC[part], {"logits": logits[part], "probabilities": probabilities[part]})
        return logits, probabilities

    def _run(self, images: NDArray[np.uint8], answers: dict[str, Floats]) -> None:
        """Run one batch that the engine takes."""
        context, cuda, stream = self._parts[0], self._cuda, self._stream
        kind = cuda.cudaMemcpyKind
        context.set_input_shape("image", images.shape)
        to_device = (self._memory["image"], images.ctypes.data, images.nbytes, kind.cudaMemcpyHostToDevice, stream)
        checked(cuda, cuda.cudaMemcpyAsync(*to_device))
        if not context.execute_async_v3(int(stream)):
            raise EngineError(f"{NAMES[self._builder]} failed: {first_error(self._builder)}", fix=OTHER_ENGINE)
        for name, values in answers.items():
            to_host = (values.ctypes.data, self._memory[name], values.nbytes, kind.cudaMemcpyDeviceToHost, stream)
            checked(cuda, cuda.cudaMemcpyAsync(*to_host))
        checked(cuda, cuda.cudaStreamSynchronize(stream))


def _require_fit(artifact: Artifact, header: EngineHeader, version: str) -> Gpu:
    """Compare version and GPU with the header; give the GPU.

    TensorRT-RTX compiles for the GPU when it opens the plan, so it judges the GPU itself.

    Raises:
        ArtifactError: If they do not fit.
        MissingDependencyError: If there is no GPU.
    """
    if version != header.builder_version:
        raise _misfit(artifact, header, f"here is {header.builder} {version}")
    try:
        gpu = find_gpu()
    except MissingDependencyError as error:
        raise MissingDependencyError(
            f"{artifact.path} was built with {header.describe()}; here is no usable GPU ({error})",
            fix="run it on a machine with one, or use the ONNX file",
        ) from error
    if header.builder == "tensorrt" and not _made_for(header, gpu):
        raise _misfit(artifact, header, f"here is {_described(gpu)}")
    return gpu


def _refusal(artifact: Artifact, header: EngineHeader, gpu: Gpu) -> ArtifactError | EngineError:
    """Return why the package did not open a plan: it is for other GPUs, or the engine failed on one of its own."""
    here = f"{header.builder} on {_described(gpu)} refuses it: {first_error(header.builder)}"
    if not _made_for(header, gpu):
        return _misfit(artifact, header, here)
    return EngineError(f"{artifact.path} was built with {header.describe()}; {here}", fix=OTHER_ENGINE)


def _made_for(header: EngineHeader, gpu: Gpu) -> bool:
    return gpu.compute_capability in header.compute_capabilities


def _described(gpu: Gpu) -> str:
    return f"{gpu.name} of compute capability {gpu.compute_capability}"


def _misfit(artifact: Artifact, header: EngineHeader, here: str) -> ArtifactError:
    return ArtifactError(
        f"{artifact.path} was built with {header.describe()}; {here}", fix=f"export it again with `{header.builder}`"
    )


def _free(parts: list[Any], cuda: Any, memory: dict[str, int], stream: Any) -> None:
    """Free what a session took; a process that is ending may have lost the device already."""
    while parts:
        del parts[0]  # the context before its engine, and that before its runtime
    for pointer in memory.values():
        cuda.cudaFree(pointer)
    memory.clear()
    cuda.cudaStreamDestroy(stream)
