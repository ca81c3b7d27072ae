"""TensorRT and TensorRT-RTX on an NVIDIA GPU."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.artifact import Artifact
from qdeploy.core.engine_file import EngineHeader, unpack
from qdeploy.core.errors import ArtifactError, MissingDependencyError
from qdeploy.runtime.engines.tensorrt_library import (
    Gpu,
    checked,
    find_gpu,
    first_error,
    load_cuda,
    load_package,
    messages,
)
from qdeploy.runtime.session import ArraySession, closed, require_images

Floats = NDArray[np.float32]


class TensorRtSession(ArraySession):
    """A session of TensorRT or TensorRT-RTX, whichever built the engine file; see ``qdeploy.runtime.session.Session``.

    One GPU, one stream, one inference at a time; larger batches than the engine's are run in parts. The number of
    threads of the contract is of the CPU and means nothing here.

    What was executed: with TensorRT-RTX everything up to the first need of a GPU, its refusal included; the rest,
    from the transfers on, only against a stand-in for the device in the tests. No engine has run on a GPU yet, and
    TensorRT itself has not been loaded. The tests marked ``gpu`` do both where there is one.
    """

    def __init__(self, artifact: Artifact, threads: int) -> None:
        if artifact.engine is None:
            raise ArtifactError(f"{artifact.path} is an ONNX file, not an engine; make one with `qdeploy export`")
        header, plan = unpack(artifact.data)
        package = load_package(header.builder)
        gpu = _require_fit(artifact, header, package.__version__)
        log = messages(header.builder)
        first_error(header.builder)  # forgets old ones
        runtime = package.Runtime(log)
        engine = runtime.deserialize_cuda_engine(plan)
        context = engine.create_execution_context() if engine else None
        if context is None:
            reason = first_error(header.builder)
            raise ArtifactError(
                _misfit(artifact, header, f"{header.builder} on {_described(gpu)} refuses it: {reason}")
            )
        self.engine = f"{header.builder} {package.__version__} on {gpu.name}"
        self._size = size = artifact.card.preprocessing.size
        self._classes = len(artifact.card.labels)
        self._max_batch = header.max_batch
        self._lock = threading.Lock()
        self._opened: tuple[Any, ...] | None = (context, engine, runtime, log)  # freed in this order
        self._cuda = load_cuda()
        self._stream = checked(self._cuda, self._cuda.cudaStreamCreate())
        self._memory: dict[str, int] = {}
        self._free = weakref.finalize(self, _free, self._cuda, self._memory, self._stream)
        answer_bytes = self._max_batch * self._classes * 4
        for name, size_bytes in {
            "image": self._max_batch * size * size * 3,
            "logits": answer_bytes,
            "probabilities": answer_bytes,
        }.items():
            self._memory[name] = int(checked(self._cuda, self._cuda.cudaMalloc(size_bytes)))
            context.set_tensor_address(name, self._memory[name])

    def infer(self, images_BSSC: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Give logits and probabilities ``[B, K]`` of uint8 images ``[B, S, S, 3]``."""
        require_images(images_BSSC, self._size)
        images = np.ascontiguousarray(images_BSSC)
        logits = np.empty((len(images), self._classes), np.float32)
        probabilities = np.empty_like(logits)
        with self._lock:
            if self._opened is None:
                raise closed()
            for i in range(0, len(images), self._max_batch):
                part = slice(i, i + self._max_batch)
                self._run(self._opened[0], images[part], {"logits": logits[part], "probabilities": probabilities[part]})
        return logits, probabilities

    def _run(self, context: Any, images: NDArray[np.uint8], answers: dict[str, Floats]) -> None:
        """Run one batch that the engine takes."""
        cuda, kind, stream = self._cuda, self._cuda.cudaMemcpyKind, self._stream
        context.set_input_shape("image", images.shape)
        to_device = (self._memory["image"], images.ctypes.data, images.nbytes, kind.cudaMemcpyHostToDevice, stream)
        checked(cuda, cuda.cudaMemcpyAsync(*to_device))
        if not context.execute_async_v3(int(stream)):
            raise MissingDependencyError(f"{self.engine} failed: {first_error(self.engine.split()[0])}")
        for name, values in answers.items():
            to_host = (values.ctypes.data, self._memory[name], values.nbytes, kind.cudaMemcpyDeviceToHost, stream)
            checked(cuda, cuda.cudaMemcpyAsync(*to_host))
        checked(cuda, cuda.cudaStreamSynchronize(stream))

    def close(self) -> None:
        """Free the engine and its memory on the device."""
        with self._lock:
            self._opened = None
            self._free()


def _require_fit(artifact: Artifact, header: EngineHeader, version: str) -> Gpu:
    """Compare version and GPU with the header; give the GPU.

    TensorRT-RTX compiles for the GPU when it opens the plan, so it judges the GPU itself.

    Raises:
        ArtifactError: If they do not fit.
        MissingDependencyError: If there is no GPU.
    """
    if version != header.builder_version:
        raise ArtifactError(_misfit(artifact, header, f"here is {header.builder} {version}"))
    try:
        gpu = find_gpu()
    except MissingDependencyError as error:
        raise MissingDependencyError(
            f"{artifact.path} was built with {header.describe()}; here is no usable GPU ({error}); run it on a machine "
            "with one, or use the ONNX file"
        ) from error
    if header.builder == "tensorrt" and gpu.compute_capability not in header.compute_capabilities:
        raise ArtifactError(_misfit(artifact, header, f"here is {_described(gpu)}"))
    return gpu


def _described(gpu: Gpu) -> str:
    return f"{gpu.name} of compute capability {gpu.compute_capability}"


def _misfit(artifact: Artifact, header: EngineHeader, here: str) -> str:
    again = f"build it again with `qdeploy export --{header.option}`"
    return f"{artifact.path} was built with {header.describe()}; {here}; {again}"


def _free(cuda: Any, memory: dict[str, int], stream: Any) -> None:
    """Give back what a session took; a process that is ending may have lost the device already."""
    for pointer in memory.values():
        cuda.cudaFree(pointer)
    memory.clear()
    cuda.cudaStreamDestroy(stream)
