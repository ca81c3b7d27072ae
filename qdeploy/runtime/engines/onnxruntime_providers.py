"""ONNX Runtime by its Python binding: on an NVIDIA GPU by CUDA or TensorRT, and on a CPU without the C library."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from qdeploy.core.artifact import Artifact
from qdeploy.core.errors import ArtifactError, MissingDependencyError
from qdeploy.runtime.engines.onnxruntime_options import CPU_PROVIDER, SILENT, cpu_engine, cpu_note, session_entries
from qdeploy.runtime.session import ArraySession, closed, require_images

OUTPUTS = ["logits", "probabilities"]


class ProviderSession(ArraySession):
    """A session of ONNX Runtime with chosen providers; see ``qdeploy.runtime.session.Session``."""

    providers: tuple[tuple[str, dict[str, Any]], ...]
    """The first is what the engine stands for; the others take what it cannot run."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        wanted = [name for name, _ in self.providers]
        _require_installed(wanted)
        target = artifact.card.target
        options = session_options(threads, target)
        if CPU_PROVIDER not in wanted:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            session = ort.InferenceSession(artifact.data, options, providers=list(self.providers), enable_fallback=0)
        except Exception as error:  # its exception types have no common base of their own
            reason = str(error).splitlines()[0]
            raise ArtifactError(
                f"{artifact.path} cannot be opened by ONNX Runtime {ort.__version__}: {reason}"
            ) from error
        running = session.get_providers()
        if running[: len(wanted)] != wanted:
            raise MissingDependencyError(
                f"ONNX Runtime {ort.__version__} runs {artifact.path} on {running[0]} instead of {wanted[0]}: its "
                "libraries cannot be loaded; install the CUDA, cuDNN and TensorRT that this onnxruntime-gpu asks for"
            )
        self._session: ort.InferenceSession | None = session
        self.engine = f"onnxruntime {' and '.join(wanted)}"
        if wanted == [CPU_PROVIDER]:
            self.engine, self.note = cpu_engine(target), cpu_note(artifact.path, target)
        self._size = artifact.card.preprocessing.size

    def infer(self, images_BSSC: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Give logits and probabilities ``[B, K]`` of uint8 images ``[B, S, S, 3]``."""
        session = self._session  # another thread may close it meanwhile
        if session is None:
            raise closed()
        require_images(images_BSSC, self._size)
        logits, probabilities = session.run(OUTPUTS, {"image": images_BSSC})
        return logits, probabilities

    def close(self) -> None:
        """Free the model."""
        self._session = None


class BindingSession(ProviderSession):
    """The CPU, where the package has no C library for ``OnnxRuntimeSession``."""

    providers = ((CPU_PROVIDER, {}),)


_CUDA = ("CUDAExecutionProvider", {"use_tf32": "0"})  # TF32 rounds the inputs of products to 10 bits


class CudaSession(ProviderSession):
    """ONNX Runtime's CUDA provider. It has not been executed yet; the tests marked ``gpu`` do where there is a GPU."""

    providers = (_CUDA,)


class TensorRtProviderSession(ProviderSession):
    """ONNX Runtime's TensorRT provider; what it cannot run, CUDA runs. It has not been executed yet either."""

    providers = (("TensorrtExecutionProvider", {}), _CUDA)


def session_options(threads: int, target: str) -> ort.SessionOptions:
    """Return the options of a session.

    Args:
        threads: Threads of one inference.
        target: What the file was made for, as its card says.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = SILENT
    for key, value in session_entries(target).items():
        options.add_session_config_entry(key, value)
    return options


def _require_installed(providers: list[str]) -> None:
    missing = [p for p in providers if p not in ort.get_available_providers()]
    if missing:
        raise MissingDependencyError(
            f"onnxruntime {ort.__version__} has no {missing[0]}; run: pip uninstall -y onnxruntime && pip install "
            "onnxruntime-gpu"
        )
