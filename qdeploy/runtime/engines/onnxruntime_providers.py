"""ONNX Runtime by its Python binding: on an NVIDIA GPU by CUDA or TensorRT, and on a CPU without the C library."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from qdeploy.core.artifact import Artifact
from qdeploy.core.errors import ArtifactError, EngineError, MissingDependencyError
from qdeploy.core.reasons import onnxruntime_reason
from qdeploy.runtime.engines.onnxruntime_binding import CPU, FAILURES, VERSION, open_binding
from qdeploy.runtime.engines.onnxruntime_options import OnnxRuntimeError, OnnxRuntimeRunError, cpu_engine, cpu_note
from qdeploy.runtime.session import OTHER_ENGINE, Session

OUTPUTS = ["logits", "probabilities"]


class ProviderSession(Session):
    """A session of ONNX Runtime with chosen providers; see ``qdeploy.runtime.session.Session``."""

    failures = FAILURES
    failure = OnnxRuntimeRunError
    providers: tuple[tuple[str, dict[str, Any]], ...]
    """The first is what the engine stands for; the others take what it cannot run."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        wanted = [name for name, _ in self.providers]
        self._require_here(wanted)
        target = artifact.card.target
        try:
            opened = open_binding(artifact.data, threads=threads, target=target, providers=self.providers)
        except OnnxRuntimeError as error:
            raise self._refused(artifact, error) from error
        running = opened.get_providers()
        if running[: len(wanted)] != wanted:
            raise MissingDependencyError(
                f"ONNX Runtime {VERSION} runs {artifact.path} on {running[0]} instead of {wanted[0]}: its libraries "
                "cannot be loaded",
                fix="install the CUDA, cuDNN and TensorRT that this onnxruntime-gpu asks for",
            )
        super().__init__(artifact, opened, self._called(wanted, target), self._noted(artifact))

    def _require_here(self, wanted: list[str]) -> None:
        missing = [p for p in wanted if p not in ort.get_available_providers()]
        if missing:
            raise MissingDependencyError(
                f"onnxruntime {VERSION} has no {missing[0]}",
                command="pip uninstall -y onnxruntime && pip install onnxruntime-gpu",
            )

    def _refused(self, artifact: Artifact, error: OnnxRuntimeError) -> ArtifactError | EngineError:
        return ArtifactError(f"{artifact.path} cannot be opened by ONNX Runtime {VERSION}: {error}")

    def _called(self, wanted: list[str], target: str) -> str:
        return f"ONNX Runtime {VERSION}, {' and '.join(p.removesuffix('ExecutionProvider') for p in wanted)}, binding"

    def _noted(self, artifact: Artifact) -> str | None:
        return None

    def _failed(self, error: Exception) -> EngineError:
        return super()._failed(OnnxRuntimeError(onnxruntime_reason(str(error))))

    def _infer(
        self, opened: ort.InferenceSession, images_BSSC: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        logits, probabilities = opened.run(OUTPUTS, {"image": images_BSSC})
        return logits, probabilities


class BindingSession(ProviderSession):
    """The CPU, where the package has no C library for ``OnnxRuntimeSession``."""

    providers = (CPU,)

    def _called(self, wanted: list[str], target: str) -> str:
        return cpu_engine(VERSION, "binding", target)

    def _noted(self, artifact: Artifact) -> str | None:
        return cpu_note(artifact.path, artifact.card.target)


class GpuSession(ProviderSession):
    """A provider that needs an NVIDIA GPU: where there is one and it fails, the engine failed, not the file."""

    def _require_here(self, wanted: list[str]) -> None:
        super()._require_here(wanted)
        if not sees_gpu():
            raise MissingDependencyError(
                f"{wanted[0]} needs an NVIDIA GPU, and no driver of this machine sees one",
                fix="run it on a machine with one, or use `engine=ort`",
            )

    def _refused(self, artifact: Artifact, error: OnnxRuntimeError) -> EngineError:
        what = f"ONNX Runtime {VERSION} failed to open {artifact.path} with {self.providers[0][0]}: {error}"
        return EngineError(what, fix=OTHER_ENGINE)


_CUDA = ("CUDAExecutionProvider", {"use_tf32": "0"})  # TF32 rounds the inputs of products to 10 bits


class CudaSession(GpuSession):
    """ONNX Runtime's CUDA provider. It has not been executed yet; the tests marked ``gpu`` do where there is a GPU."""

    providers = (_CUDA,)


class TensorRtProviderSession(GpuSession):
    """ONNX Runtime's TensorRT provider; what it cannot run, CUDA runs. It has not been executed yet either."""

    providers = (("TensorrtExecutionProvider", {}), _CUDA)


def sees_gpu() -> bool:
    """Return whether this machine has an NVIDIA driver that sees a GPU."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
