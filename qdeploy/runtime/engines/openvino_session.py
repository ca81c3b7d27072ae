"""OpenVINO on the CPU, computing in float32 or in bfloat16."""

from __future__ import annotations

import sys
import threading
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.artifact import Artifact
from qdeploy.core.errors import ArtifactError, MissingDependencyError, one_line
from qdeploy.core.machine import SEVEN_BIT_TARGET, saturates
from qdeploy.runtime.session import Session

# The package imports its converter if it can, and that sends usage statistics at once and costs 70 ms.
_CONVERTER = "openvino.tools.ovc"
_blocked = "openvino" not in sys.modules
if _blocked:
    sys.modules[_CONVERTER] = None  # type: ignore[assignment]
try:
    import openvino as ov
finally:
    if _blocked:
        del sys.modules[_CONVERTER]

PARTS = (8, 1)
"""Images of one inference: graphs of a fixed batch are 10 to 40 % faster, and each batch is a graph to compile."""

Floats = NDArray[np.float32]


@lru_cache(maxsize=1)
def core() -> Any:
    """Return the one core of this process.

    A core's CPU plugin gives the thread that opens it a stack for signal handlers, and frees it with the core: with a
    second core, or after the last one, Ctrl-C would end the process by a segmentation fault (OpenVINO 2026.4).
    """
    return ov.Core()


class OpenVinoSession(Session):
    """A session of OpenVINO; see ``qdeploy.runtime.session.Session``.

    Inputs and outputs are bound once to arrays of our own: its call with a dictionary costs 60 to 100 us more. One
    inference runs at a time, callers wait for each other; a batch runs in parts of 8 and of 1.
    """

    failures = (RuntimeError,)
    precision = "f32"

    def __init__(self, artifact: Artifact, threads: int) -> None:
        if saturates(artifact.card.target):
            raise ArtifactError(
                f"{artifact.path} was made for {artifact.card.target}, and OpenVINO computes it wrongly on this CPU, "
                "which has no VNNI",
                fix=f"use `engine=ort`, or a file exported with `target={SEVEN_BIT_TARGET}`",
            )
        if self.precision == "bf16" and "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise MissingDependencyError(
                "this CPU computes no bfloat16 (it needs AVX512-BF16 or AMX)",
                fix="use `engine=openvino` or `engine=ort`",
            )
        opened = _Model(artifact, self.precision, threads)
        try:
            compiled = opened.graph(1).compiled
        except Exception as error:  # its errors are RuntimeErrors of many lines
            raise ArtifactError(
                f"{artifact.path} cannot be opened by OpenVINO {ov.__version__}: {one_line(error)}"
            ) from error
        runs_in = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        devices = " ".join(compiled.get_property("EXECUTION_DEVICES"))
        if runs_in != self.precision:
            raise MissingDependencyError(f"OpenVINO computes in {runs_in} here, not in {self.precision}")
        super().__init__(artifact, opened, f"OpenVINO {ov.__version__.partition('-')[0]}, {devices}, {runs_in}")

    def _infer(self, opened: _Model, images_BSSC: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        return opened.run(images_BSSC)


class OpenVinoBf16Session(OpenVinoSession):
    """A session of OpenVINO in bfloat16, which needs no calibration, but a CPU that computes in bfloat16."""

    precision = "bf16"


class _Model:
    """A file with a compiled graph for each batch size of ``PARTS``, made when it is first needed."""

    def __init__(self, artifact: Artifact, precision: str, threads: int) -> None:
        self._options = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            # else the threads of every process are pinned to the same first cores
            "ENABLE_CPU_PINNING": False,
        }
        self._data = artifact.data
        self._size = artifact.card.preprocessing.size
        self._classes = len(artifact.card.labels)
        self._lock = threading.Lock()
        self._graphs: dict[int, _Graph] = {}

    def run(self, images_BSSC: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Return logits and probabilities ``[B, K]``."""
        logits = np.empty((len(images_BSSC), self._classes), np.float32)
        probabilities = np.empty_like(logits)
        with self._lock:
            begin = 0
            while begin < len(images_BSSC):
                size = next(p for p in PARTS if p <= len(images_BSSC) - begin)
                part = slice(begin, begin + size)
                logits[part], probabilities[part] = self.graph(size).run(images_BSSC[part])
                begin += size
        return logits, probabilities

    def graph(self, batch: int) -> _Graph:
        """Return the compiled graph of a batch."""
        if batch not in self._graphs:
            model = core().read_model(self._data)
            model.reshape({"image": [batch, self._size, self._size, 3]})
            compiled = core().compile_model(model, "CPU", self._options)
            self._graphs[batch] = _Graph(compiled, batch, self._size, self._classes)
        return self._graphs[batch]


class _Graph:
    """A compiled graph of one batch size with the arrays it reads and writes, which OpenVINO does not keep alive."""

    def __init__(self, compiled: Any, batch: int, size: int, classes: int) -> None:
        self.compiled = compiled
        self._request = compiled.create_infer_request()
        self._images = np.zeros((batch, size, size, 3), np.uint8)
        self._logits = np.empty((batch, classes), np.float32)
        self._probabilities = np.empty_like(self._logits)
        bound = {"image": self._images, "logits": self._logits, "probabilities": self._probabilities}
        for name, array in bound.items():
            self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))

    def run(self, images: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Return the logits and probabilities; both are overwritten by the next run."""
        np.copyto(self._images, images)
        self._request.infer(share_outputs=True)
        return self._logits, self._probabilities
