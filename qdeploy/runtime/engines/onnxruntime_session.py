"""ONNX Runtime on the CPU."""

from __future__ import annotations

from types import TracebackType

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from qdeploy.core.artifact import Artifact
from qdeploy.core.errors import ArtifactError, InputError

PROVIDER = "CPUExecutionProvider"
OUTPUTS = ["logits", "probabilities"]


class OnnxRuntimeSession:
    """A session of ONNX Runtime; see ``qdeploy.runtime.session.Session``."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session: ort.InferenceSession | None = ort.InferenceSession(
                artifact.data, options, providers=[PROVIDER]
            )
        except Exception as error:  # its exception types have no common base of their own
            reason = str(error).splitlines()[0]
            raise ArtifactError(
                f"{artifact.path} cannot be opened by ONNX Runtime {ort.__version__}: {reason}"
            ) from error
        self.engine = f"onnxruntime {self._session.get_providers()[0]}"
        size = artifact.card.preprocessing.size
        self._shape = (size, size, 3)

    def infer(self, images_BSSC: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Give logits and probabilities ``[B, K]`` of uint8 images ``[B, S, S, 3]``."""
        if self._session is None:
            raise InputError("this session is closed; open the artifact again")
        if images_BSSC.dtype != np.uint8 or images_BSSC.ndim != 4 or images_BSSC.shape[1:] != self._shape:
            raise InputError(
                f"the model takes uint8 images of shape [batch, {', '.join(map(str, self._shape))}], found "
                f"{images_BSSC.dtype} {list(images_BSSC.shape)}"
            )
        logits, probabilities = self._session.run(OUTPUTS, {"image": images_BSSC})
        return logits, probabilities

    def close(self) -> None:
        """Free the model."""
        self._session = None

    def __enter__(self) -> OnnxRuntimeSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
