"""The one contract of every inference engine, and the table of engines.

A session is opened from an artifact's verified bytes, never from a path, so that what was checked is what runs.
To add an engine: one file in ``engines/``, one row here, one subclass of the contract tests.
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qdeploy.core.artifact import Artifact
from qdeploy.core.errors import (
    ArtifactError,
    EngineError,
    InputError,
    MissingDependencyError,
    near_miss,
    one_line,
)
from qdeploy.core.machine import native_target, usable_cores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SMALL_MACS = 100_000_000
"""Below this a second thread costs more in hand-over than it computes."""
OTHER_ENGINE = "see `qdeploy doctor`, or use another `engine`"
"""What a user can do about an engine that failed."""

Rows = list[list[float]]
"""K logits or probabilities for each image."""


class Session(ABC):
    """An opened model, which every engine's class derives from.

    ``infer`` and ``infer_bytes`` check what they are given and may be called from several threads; an engine's own
    ``_infer`` only works. Leaving a ``with`` closes the session.

    A subclass opens the file in its constructor, passes what it opened to this one, and is given it back in every
    call. ``close`` only lets go of it: it must free what it holds when its last user is gone, which may be a call of
    another thread.
    """

    failures: tuple[type[Exception], ...] = ()
    """What the engine's library raises when a run fails."""
    failure: type[EngineError] = EngineError
    """What is raised for it."""

    def __init__(self, artifact: Artifact, opened: object, engine: str, note: str | None = None) -> None:
        self.engine = engine
        """What really runs, e.g. ``ONNX Runtime 1.32.0, CPU, library``."""
        self.note = note
        """What the user should know of how the file runs on this machine; None if nothing."""
        self.size: int = artifact.card.preprocessing.size
        """Height and width of the images."""
        self.classes = len(artifact.card.labels)
        self._path = artifact.path
        self._opened: Any = opened

    def infer(self, images_BSSC: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits and probabilities ``[B, K]`` of uint8 images ``[B, S, S, 3]``.

        Raises:
            InputError: If the images are of another kind or shape, or the session is closed.
            EngineError: If the engine fails.
        """
        import numpy as np

        opened = self._still_open()
        self._require_images(images_BSSC)
        if not len(images_BSSC):
            return np.empty((0, self.classes), np.float32), np.empty((0, self.classes), np.float32)
        try:
            return self._infer(opened, np.ascontiguousarray(images_BSSC))
        except self.failures as error:
            raise self._failed(error) from error

    def infer_bytes(self, images: bytes, count: int) -> tuple[Rows, Rows]:
        """Return the same for ``count`` images whose bytes follow each other; where an engine can, without numpy.

        Raises:
            InputError: If the bytes are not so many images, or the session is closed.
            EngineError: If the engine fails.
        """
        opened = self._still_open()
        self._require_bytes(images, count)
        if not count:
            return [], []
        try:
            return self._infer_bytes(opened, images, count)
        except self.failures as error:
            raise self._failed(error) from error

    @abstractmethod
    def _infer(self, opened: Any, images_BSSC: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits and probabilities of at least one image, checked and contiguous."""

    def _infer_bytes(self, opened: Any, images: bytes, count: int) -> tuple[Rows, Rows]:
        """Return the same as lists; an engine that does without numpy has its own."""
        import numpy as np

        pixels = np.frombuffer(images, np.uint8).reshape(count, self.size, self.size, 3)
        logits, probabilities = self._infer(opened, pixels)
        return logits.tolist(), probabilities.tolist()

    def close(self) -> None:
        """Let go of the model; ``infer`` raises afterwards."""
        self._opened = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _still_open(self) -> Any:
        opened = self._opened  # another thread may close it meanwhile
        if opened is None:
            raise InputError("this session is closed", fix="open the artifact again")
        return opened

    def _require_images(self, images: NDArray[np.uint8]) -> None:
        kind, shape = getattr(images, "dtype", type(images).__name__), list(getattr(images, "shape", ()))
        if kind != "uint8" or len(shape) != 4 or shape[1:] != [self.size, self.size, 3]:
            what = f"the model takes uint8 images of shape [batch, {self.size}, {self.size}, 3]"
            raise InputError(what, found=f"{kind} {shape}")

    def _require_bytes(self, images: bytes, count: int) -> None:
        wanted = count * self.size * self.size * 3
        if not isinstance(images, bytes) or len(images) != wanted:
            found = len(images) if isinstance(images, bytes) else f"a {type(images).__name__}"
            raise InputError(f"{count} images of [{self.size}, {self.size}, 3] are {wanted} bytes", found=found)

    def _failed(self, error: Exception) -> EngineError:
        return self.failure(f"{self.engine} failed with {self._path}: {one_line(error)}", fix=OTHER_ENGINE)


@dataclass(frozen=True)
class Engine:
    """Where an engine's class is, and what installs its library."""

    location: str
    library: str
    install: str
    builder: str | None = None
    """Python package whose engine files the engine opens; None if it opens ONNX files."""
    binding: str | None = None
    """Location of the class that works without ONNX Runtime's C library, for packages that have none."""
    golden_db: float = math.inf
    """Agreement with the goldens, in decibels, asked of an engine that computes more coarsely than the file says."""
    int8_golden_db: float = 20.0
    """Agreement with the goldens, in decibels, asked of other engines for INT8 files. ONNX Runtime on the CPU made the
    goldens, and others round at other places: OpenVINO reaches 35 to 37 dB on nano's, and TensorRT has not been run
    yet."""

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
    "native": Engine("qdeploy.runtime.engines.native_session:NativeSession", "qdeploy", "qdeploy"),
    "tensorrt": Engine(_TENSORRT, "tensorrt", "qdeploy[tensorrt]", builder="tensorrt"),
    "tensorrt-rtx": Engine(_TENSORRT, "tensorrt_rtx", "qdeploy[tensorrt-rtx]", builder="tensorrt_rtx"),
}


def open_session(artifact: Artifact, engine: str = "ort", threads: int | None = None, selftest: bool = True) -> Session:
    """Open an artifact with an engine and check it against its goldens.

    Args:
        artifact: A verified model file.
        engine: A key of ``ENGINES``.
        threads: Threads of one inference; by default 1 for small models, else the usable cores.
        selftest: Whether to run the goldens, which cost milliseconds; and before them, once on each machine, to try the
            graph in a process with limits (``runtime.trial``).

    Raises:
        InputError: If the engine or the number of threads is unknown or out of range.
        MissingDependencyError: If the engine's library is not installed.
        ArtifactError: If the engine refuses the file or its answers differ from the goldens.
        EngineError: If the engine fails.
    """
    if threads is None:
        threads = 1 if artifact.card.model.macs < SMALL_MACS else usable_cores()
    if not 1 <= threads <= 1024:
        raise InputError("`threads` must be between 1 and 1024", found=threads)
    opener = engine_class(engine)
    _require_kind(artifact, engine)
    if selftest and artifact.foreign:
        from qdeploy.runtime.trial import require_bounded

        require_bounded(artifact)
    session = opener(artifact, threads)
    if selftest:
        try:
            check_goldens(artifact, session, ENGINES[engine].least_db(artifact.card.precision))
        except EngineError as error:
            if engine != "ort":  # whose hardware may be to blame
                raise
            raise ArtifactError(error.what, fix="the file is damaged or forged: export it again") from error
    return session


def engines_for(artifact: Artifact) -> tuple[str, ...]:
    """Return the engines that open files of this kind, in the order of ``ENGINES``: the one to prefer comes first.

    Whether their libraries and devices are here is found when one is opened.
    """
    builder = artifact.engine.builder if artifact.engine else None
    return tuple(name for name, engine in ENGINES.items() if engine.builder == builder)


def _require_kind(artifact: Artifact, engine: str) -> None:
    """Check that a file is of the kind that an engine opens."""
    fitting = engines_for(artifact)
    if engine in fitting:
        return
    if artifact.engine is None:
        raise ArtifactError(
            f"{artifact.path} is an ONNX file, and {engine} opens engines",
            fix=f"an export with `{ENGINES[engine].builder}` makes one",
        )
    raise ArtifactError(
        f"{artifact.path} is an engine built with {artifact.engine.builder}, which {engine} cannot open",
        fix=" or ".join([*(f"use `engine={name}`" for name in fitting), "use the ONNX file"]),
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
        elsewhere = artifact.card.precision == "int8" and target != here
        other = f"a file exported with `target={here}`, " if elsewhere else ""
        raise ArtifactError(
            f"{artifact.path} gives wrong answers with {session.engine} on this machine: {found:.1f} dB against its "
            f"goldens, at least {least:.0f} dB{'' if same else ' and the same classes'} expected",
            fix=f"use {other}the fp32 file or another `engine`",
        )


def engine_named(name: str) -> Engine:
    """Return an engine's row of the table.

    Raises:
        InputError: If there is no such engine.
    """
    if name not in ENGINES:
        raise InputError(f"there is no engine '{name}'{near_miss(name, ENGINES)}", fix=f"known: {', '.join(ENGINES)}")
    return ENGINES[name]


def engine_class(name: str) -> Callable[[Artifact, int], Session]:
    """Import an engine's class by the engine's name.

    Raises:
        InputError: If there is no such engine.
        MissingDependencyError: If its library is not installed.
    """
    engine = engine_named(name)
    try:
        return _opener(engine)
    except ModuleNotFoundError as error:
        if error.name != engine.library:
            raise
        raise MissingDependencyError(
            f"{engine.library} is not installed", command=f"pip install '{engine.install}'"
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
