"""ONNX Runtime on the CPU, without numpy and without ONNX Runtime's Python binding."""

from __future__ import annotations

from ctypes import c_float
from typing import TYPE_CHECKING

from qdeploy.core.artifact import Artifact
from qdeploy.core.errors import ArtifactError
from qdeploy.runtime.engines.onnxruntime_library import VERSION, Model, OnnxRuntimeError
from qdeploy.runtime.engines.onnxruntime_options import cpu_engine, cpu_note
from qdeploy.runtime.session import Rows, Session, closed, require_bytes, require_images

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class OnnxRuntimeSession(Session):
    """A session of ONNX Runtime; see ``qdeploy.runtime.session.Session``."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        self.engine = cpu_engine(artifact.card.target)
        self.note = cpu_note(artifact.path, artifact.card.target)
        self._path = artifact.path
        self._size = artifact.card.preprocessing.size
        self._classes = len(artifact.card.labels)
        try:
            self._model: Model | None = Model(artifact.data, threads, artifact.card.target)
        except OnnxRuntimeError as error:
            raise ArtifactError(
                f"{artifact.path} cannot be opened by ONNX Runtime {VERSION}: {_one_line(error)}"
            ) from error

    def infer(self, images_BSSC: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Give logits and probabilities ``[B, K]`` of uint8 images ``[B, S, S, 3]``."""
        import numpy as np

        require_images(images_BSSC, self._size)
        images = np.ascontiguousarray(images_BSSC)
        logits = np.empty((len(images), self._classes), np.float32)
        probabilities = np.empty_like(logits)
        places = (a.__array_interface__["data"][0] for a in (images, logits, probabilities))
        self._run(len(images), *places)
        return logits, probabilities

    def infer_bytes(self, images: bytes, count: int) -> tuple[Rows, Rows]:
        """Give logits and probabilities of so many images, which follow each other."""
        require_bytes(images, count, self._size)
        k = self._classes
        logits, probabilities = ((c_float * (count * k))() for _ in range(2))
        self._run(count, images, logits, probabilities)
        rows = [slice(i * k, (i + 1) * k) for i in range(count)]
        return [logits[row] for row in rows], [probabilities[row] for row in rows]

    def _run(self, count: int, images: object, logits: object, probabilities: object) -> None:
        model = self._model  # another thread may close it meanwhile
        if model is None:
            raise closed()
        if count == 0:
            return
        try:
            model.run(images, (count, self._size, self._size, 3), logits, probabilities, self._classes)
        except OnnxRuntimeError as error:
            raise ArtifactError(f"ONNX Runtime {VERSION} failed with {self._path}: {_one_line(error)}") from error

    def close(self) -> None:
        """Free the model."""
        self._model = None


def _one_line(error: OnnxRuntimeError) -> str:
    return " ".join(str(error).split())
