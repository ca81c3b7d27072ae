"""Access to TensorRT for building and for running engines: the package, its messages, and this machine's GPU."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from qdeploy.core.errors import EngineError, MissingDependencyError, one_line
from qdeploy.core.reasons import tensorrt_reason

NO_DEVICE = (
    "cudaErrorNoDevice",
    "cudaErrorInsufficientDriver",
    "cudaErrorStubLibrary",
    "cudaErrorSystemDriverMismatch",
)
"""What CUDA says where a GPU or a driver that fits is missing; anything else is a failure."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A CUDA device."""

    name: str
    compute_capability: str
    """e.g. ``8.9``."""


def load_package(builder: str) -> Any:
    """Import tensorrt or tensorrt_rtx.

    Raises:
        MissingDependencyError: If it is not installed, or cannot be loaded.
    """
    install = f"pip install 'qdeploy[{builder.replace('_', '-')}]'"
    try:
        return importlib.import_module(builder)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{error.name or builder} is not installed", command=install) from error
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"{builder} cannot be loaded: {one_line(error)}", fix=f"install it again: {install}"
        ) from error


@lru_cache
def messages(builder: str) -> Any:
    """Return the package's logger, which keeps errors until ``first_error`` takes them.

    One for the life of the process: the library goes on using the first logger that it was given.
    """
    package = load_package(builder)

    class Messages(package.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            package.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (package.ILogger.ERROR, package.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))

    return Messages()


def first_error(builder: str) -> str:
    """Return the first error since the last call, in one line, and forget all.

    Messages about the logging itself are passed over.
    """
    log = messages(builder)
    errors = [e for e in log.errors if "Using global log stream" not in e]
    log.errors.clear()
    return tensorrt_reason(errors[0]) if errors else "it gave no reason"


def load_cuda() -> Any:
    """Import the CUDA runtime.

    Raises:
        MissingDependencyError: If cuda-python is not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise MissingDependencyError("cuda-python is not installed", command="pip install cuda-python") from error


def checked(cuda: Any, result: tuple[Any, ...]) -> Any:
    """Return the value of a CUDA call.

    Raises:
        MissingDependencyError: If there is no GPU, or no driver for it.
        EngineError: If the call failed for another reason, e.g. too little memory.
    """
    status, *values = result
    if status != cuda.cudaError_t.cudaSuccess:
        _, text = cuda.cudaGetErrorString(status)
        kind = MissingDependencyError if status.name in NO_DEVICE else EngineError
        raise kind(f"CUDA: {text.decode()} ({status.name})")
    return values[0] if values else None


def find_gpu() -> Gpu:
    """Describe the first GPU.

    Raises:
        MissingDependencyError: If there is none, or no driver for it.
        EngineError: If it does not answer.
    """
    cuda = load_cuda()
    if not checked(cuda, cuda.cudaGetDeviceCount()):
        raise MissingDependencyError("CUDA: no GPU")
    properties = checked(cuda, cuda.cudaGetDeviceProperties(0))
    name = bytes(properties.name).split(b"\0")[0].decode()
    return Gpu(name=name, compute_capability=f"{properties.major}.{properties.minor}")
