"""The one contract of every inference engine, and the table of engines.

A session is opened from an artifact's verified bytes, never from a path, so that what was checked is what runs.
To add an engine: one file in ``engines/``, one row here, one subclass of the contract tests.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from qdeploy.core.artifact import Artifact
from qdeploy.core.errors import ArtifactError, InputError, MissingDependencyError, near_miss
from qdeploy.core.machine import native_target, usable_cores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SMALL_MACS = 100_000_000
"""Below this a second thread costs more in hand-over than it computes."""


Rows = list[list[float]]
"""Of each image its K logits or probabilities."""


class Session(Protocol):
    """An opened model, which every engine's class derives from.

    ``infer`` and ``infer_bytes`` may be called from several threads. Leaving a ``with`` closes it.
    """

    engine: str
    """What really runs, e.g. ``onnxruntime CPUExecutionProvider``."""
    note: str | None = None
    """What the user should know of how the file runs on this machine; None if nothing."""

    def infer(self, images_BSSC: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Give logits and probabilities ``[B, K]`` of uint8 images ``[B, S, S, 3]``."""

    def infer_bytes(self, images: bytes, count: int) -> tuple[Rows, Rows]:
        """Give the same, of ``count`` images whose bytes follow each other: where an engine can, without numpy."""

    def close(self) -> None:
        """Free the model; ``infer`` raises afterwards."""

    def __enter__(self) -> Session:
        """Give the session itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


class ArraySession(Session, Protocol):
    """What the sessions of engines that work on arrays have in common."""

    _size: int

    def infer_bytes(self, images: bytes, count: int) -> tuple[Rows, Rows]:
        """Give logits and probabilities of so many images, which follow each other."""
        import numpy as np

        require_bytes(images, count, self._size)
        if count == 0:
            return [], []
        logits, probabilities = self.infer(np.frombuffer(images, np.uint8).reshape(count, self._size, self._size, 3))
        return logits.tolist(), probabilities.tolist()


@dataclass(frozen=True)
class Engine:
    """Where an engine's class is, and what installs its library."""

    location: str
    library: str
    install: str
    builder: str | None = None
    """It opens the engine files of this builder instead of ONNX files."""
    binding: str | None = None
    """Where the class is that does without ONNX Runtime's C library, for packages that have none."""
    golden_db: float = math.inf
    """Agreement with the goldens, in decibels, asked of an engine that computes more coarsely than the file says."""
    int8_golden_db: float = 20.0
    """The same for INT8 files. ONNX Runtime on the CPU made the goldens; other engines round at other places: OpenVINO
    reaches 35 to 37 dB on nano's, and TensorRT has not been run yet."""

    def least_db(self, precision: str) -> float:
        """Return the agreement asked of this engine for a file's precision; infinite: what the file asks for."""
        return min(self.golden_db, self.int8_golden_db) if precision == "int8" else self.golden_db


_TENSORRT = "qdeploy.runtime.engines.tensorrt_session:TensorRtSession"

_ORT = "qdeploy.runtime.engines.onnxruntime_session"
_ORT_LIBRARY = "qdeploy.runtime.engines.onnxruntime_library"
_PROVIDERS = "qdeploy.runtime.engines.onnxruntime_providers"
_OPENVINO = "qdeploy.runtime.engines.openvino_session"

BF16_GOLDEN_DB = 30.0
"""bfloat16 keeps 8 bits: 59 dB after one rounding, 43 dB expected after 40 layers; 45 to 52 dB measured on nano, micro,
ResNet-18 and a MobileViT."""

ENGINES = {
    "ort": Engine(
        f"{_ORT}:OnnxRuntimeSession",
        "onnxruntime",
        "onnxruntime",
        binding=f"{_PROVIDERS}:BindingSession",
        int8_golden_db=math.inf,
    ),
    "ort-cuda": Engine(f"{_PROVIDERS}:CudaSession", "onnxruntime", "onnxruntime-gpu"),
    "ort-tensorrt": Engine(f"{_PROVIDERS}:TensorRtProviderSession", "onnxruntime", "onnxruntime-gpu"),
    "openvino": Engine(f"{_OPENVINO}:OpenVinoSession", "openvino", "qdeploy[openvino]"),
    "openvino-bf16": Engine(
        f"{_OPENVINO}:OpenVinoBf16Session", "openvino", "qdeploy[openvino]", golden_db=BF16_GOLDEN_DB
    ),
    "tensorrt": Engine(_TENSORRT, "tensorrt", "qdeploy[tensorrt]", builder="tensorrt"),
    "tensorrt-rtx": Engine(_TENSORRT, "tensorrt_rtx", "qdeploy[tensorrt-rtx]", builder="tensorrt_rtx"),
}


def open_session(artifact: Artifact, engine: str = "ort", threads: int | None = None, selftest: bool = True) -> Session:
    """Open an artifact with an engine and check it against its goldens.

    Args:
        artifact: A verified model file.
        engine: A key of ``ENGINES``.
        threads: Threads of one inference; by default 1 for small models, else the usable cores.
        selftest: Whether to run the goldens; they cost milliseconds.

    Raises:
        InputError: If the engine or the number of threads is unknown or out of range.
        MissingDependencyError: If the engine's library is not installed.
        ArtifactError: If the engine refuses the file or its answers differ from the goldens.
    """
    if threads is None:
        threads = 1 if artifact.card.model.macs < SMALL_MACS else usable_cores()
    if not 1 <= threads <= 1024:
        raise InputError(f"--threads must be between 1 and 1024, found {threads}")
    opener = engine_class(engine)
    _require_kind(artifact, engine)
    session = opener(artifact, threads)
    if selftest:
        check_goldens(artifact, session, ENGINES[engine].least_db(artifact.card.precision))
    return session


def require_images(images: NDArray[np.uint8], size: int) -> None:
    """Check that an array is a batch of images of a model's size.

    Raises:
        InputError: If not.
    """
    if images.dtype != "uint8" or images.ndim != 4 or images.shape[1:] != (size, size, 3):
        raise InputError(
            f"the model takes uint8 images of shape [batch, {size}, {size}, 3], found {images.dtype} "
            f"{list(images.shape)}"
        )


def require_bytes(images: bytes, count: int, size: int) -> None:
    """Check that bytes are so many images of a model's size.

    Raises:
        InputError: If not.
    """
    wanted = count * size * size * 3
    if not isinstance(images, bytes) or len(images) != wanted:
        found = f"{len(images)}" if isinstance(images, bytes) else f"a {type(images).__name__}"
        raise InputError(f"{count} images of [{size}, {size}, 3] are {wanted} bytes, found {found}")


def closed() -> InputError:
    """Give the error of a session that is used after it was closed."""
    return InputError("this session is closed; open the artifact again")


def _require_kind(artifact: Artifact, engine: str) -> None:
    """Check that a file is of the kind that an engine opens."""
    found = artifact.engine.builder if artifact.engine else None
    wanted = ENGINES[engine].builder
    if found == wanted:
        return
    if found is None:
        raise ArtifactError(
            f"{artifact.path} is an ONNX file, and {engine} opens engines; `qdeploy export --{engine}` makes one"
        )
    fitting = [name for name, e in ENGINES.items() if e.builder == found]
    raise ArtifactError(
        f"{artifact.path} is an engine built with {found}, which {engine} cannot open; use --engine "
        f"{' or '.join(fitting) or 'of a newer qdeploy'}, or the ONNX file"
    )


def check_goldens(artifact: Artifact, session: Session, golden_db: float = math.inf) -> None:
    """Run the golden inputs and compare: signal-to-noise ratio, and for a coarser engine the classes, too.

    Args:
        artifact: The model file.
        session: The file, opened.
        golden_db: Least agreement in decibels, if less than the file asks for.

    Raises:
        ArtifactError: If the answers are not those the file was made with.
    """
    goldens = artifact.card.goldens
    rows, _ = session.infer_bytes(goldens.pixels, len(goldens.rows))
    found = goldens.sqnr_db(rows)
    least = min(goldens.min_sqnr_db, golden_db)
    same = golden_db == math.inf or goldens.same_classes(rows)
    if not (found >= least and same):
        target, here = artifact.card.target, native_target()
        other = (
            f"a file exported with --target {here}, " if artifact.card.precision == "int8" and target != here else ""
        )
        raise ArtifactError(
            f"{artifact.path} gives wrong answers with {session.engine} on this machine: {found:.1f} dB against its "
            f"goldens, at least {least:.0f} dB{'' if same else ' and the same classes'} expected; use {other}the fp32 "
            "file or another engine"
        )


def engine_class(name: str) -> Callable[[Artifact, int], Session]:
    """Import an engine's class by the engine's name.

    Raises:
        InputError: If there is no such engine.
        MissingDependencyError: If its library is not installed.
    """
    if name not in ENGINES:
        raise InputError(f"there is no engine '{name}'{near_miss(name, ENGINES)}; known: {', '.join(ENGINES)}")
    engine = ENGINES[name]
    try:
        return _opener(engine)
    except ModuleNotFoundError as error:
        if error.name != engine.library:
            raise
        raise MissingDependencyError(
            f"{engine.library} is not installed; run: pip install '{engine.install}'"
        ) from error


@cache  # so that what is not there is looked for once
def _opener(engine: Engine) -> Callable[[Artifact, int], Session]:
    try:
        return _imported(engine.location)
    except ModuleNotFoundError as error:
        if engine.binding is None or error.name != _ORT_LIBRARY:
            raise
        return _imported(engine.binding)


def _imported(location: str) -> Callable[[Artifact, int], Session]:
    module, _, attribute = location.partition(":")
    return getattr(importlib.import_module(module), attribute)
