"""ONNX Runtime on the CPU, without numpy and without ONNX Runtime's Python binding."""

from __future__ import annotations

from ctypes import c_float
from typing import TYPE_CHECKING

from qdeploy.core.artifact import Artifact
from qdeploy.core.errors import ArtifactError, one_line
from qdeploy.runtime.engines.addresses import placed
from qdeploy.runtime.engines.onnxruntime_library import VERSION, Model
from qdeploy.runtime.engines.onnxruntime_options import OnnxRuntimeError, OnnxRuntimeRunError, cpu_engine, cpu_note
from qdeploy.runtime.session import Rows, Session

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class OnnxRuntimeSession(Session):
    """A session of ONNX Runtime; see ``qdeploy.runtime.session.Session``."""

    failures = (OnnxRuntimeError,)
    failure = OnnxRuntimeRunError

    def __init__(self, artifact: Artifact, threads: int) -> None:
        target = artifact.card.target
        try:
            opened = Model(artifact.data, threads, target)
        except OnnxRuntimeError as error:
            raise ArtifactError(
                f"{artifact.path} cannot be opened by ONNX Runtime {VERSION}: {one_line(error)}"
            ) from error
        super().__init__(artifact, opened, cpu_engine(VERSION, "library", target), cpu_note(artifact.path, target))

    def _infer(self, opened: Model, images_BSSC: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        images, answers, places = placed(images_BSSC, self.classes)
        self._run(opened, len(images), *places)
        return answers[0], answers[1]

    def _infer_bytes(self, opened: Model, images: bytes, count: int) -> tuple[Rows, Rows]:
        k = self.classes
        logits, probabilities = ((c_float * (count * k))() for _ in range(2))
        self._run(opened, count, images, logits, probabilities)
        rows = [slice(i * k, (i + 1) * k) for i in range(count)]
        return [logits[row] for row in rows], [probabilities[row] for row in rows]

    def _run(self, opened: Model, count: int, images: object, logits: object, probabilities: object) -> None:
        opened.run(images, (count, self.size, self.size, 3), logits, probabilities, self.classes)
