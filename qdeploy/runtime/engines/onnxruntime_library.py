"""ONNX Runtime's C library, called directly.

Every wheel carries it beside the Python binding. That binding, and the numpy it needs, are much of the start of a
process that classifies one image (benchmarks/cold_start.py).

Its functions are a table whose places never change (``onnxruntime_cAPI.h``; the test compares with the header).
Importing this module loads the library, once a process.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import weakref
from collections.abc import Sequence
from contextlib import suppress
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from qdeploy.core.errors import MissingDependencyError
from qdeploy.runtime.engines.onnxruntime_options import SILENT, OnnxRuntimeError, session_entries

PACKAGE = "onnxruntime"
LIBRARIES = ("libonnxruntime.so*", "libonnxruntime.*dylib", "onnxruntime.dll")
"""Names of the library in the wheels for Linux, macOS and Windows; other builds may have the Python binding only."""
API_VERSION = 20
"""Version of the C API: that of ONNX Runtime 1.20, the oldest that pyproject.toml allows; later ones have it, too."""

FUNCTIONS: dict[str, tuple[int, tuple[Any, ...]]] = {
    "CreateEnv": (3, (c_int, c_char_p, c_void_p)),
    "CreateSessionFromArray": (8, (c_void_p, c_char_p, c_size_t, c_void_p, c_void_p)),
    "Run": (9, (c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p)),
    "CreateSessionOptions": (10, (c_void_p,)),
    "SetSessionLogSeverityLevel": (22, (c_void_p, c_int)),
    "SetIntraOpNumThreads": (24, (c_void_p, c_int)),
    "SetInterOpNumThreads": (25, (c_void_p, c_int)),
    "CreateTensorWithDataAsOrtValue": (49, (c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_int, c_void_p)),
    "CreateCpuMemoryInfo": (69, (c_int, c_int, c_void_p)),
    "AddSessionConfigEntry": (130, (c_void_p, c_char_p, c_char_p)),
}
"""Index in the API's table and argument types of each function; each returns a status, null if it succeeded."""
GET_ERROR_MESSAGE = 2
RELEASES = {"ReleaseStatus": 93, "ReleaseSession": 95, "ReleaseValue": 96, "ReleaseSessionOptions": 100}
"""Index in the API's table of each function that frees an object; they return nothing."""

_DEVICE_ALLOCATOR, _DEFAULT_MEMORY = 0, 0
_FLOAT, _UINT8 = 1, 2  # element types of tensors


_function = getattr(ctypes, "WINFUNCTYPE", ctypes.CFUNCTYPE)  # ORT_API_CALL


class _Base(ctypes.Structure):
    _fields_ = [("GetApi", _function(c_void_p, c_uint32)), ("GetVersionString", _function(c_char_p))]


class _Api:
    """The functions of a loaded library, by name; a status that is an error is raised."""

    def __init__(self, file: Path) -> None:
        library = ctypes.CDLL(str(file))
        library.OrtGetApiBase.restype = POINTER(_Base)
        base = library.OrtGetApiBase().contents
        self.version: str = base.GetVersionString().decode()
        table = base.GetApi(API_VERSION)
        if not table:
            raise OSError(f"ONNX Runtime {self.version} is older than 1.{API_VERSION}, which is needed")
        places = ctypes.cast(table, POINTER(c_void_p))
        self._message = _function(c_char_p, c_void_p)(places[GET_ERROR_MESSAGE])
        for name, place in RELEASES.items():
            setattr(self, name, _function(None, c_void_p)(places[place]))
        for name, (place, arguments) in FUNCTIONS.items():
            function = _function(c_void_p, *arguments)(places[place])
            function.errcheck = self._check
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def _check(self, status: int | None, *_: Any) -> None:
        if status:
            text = self._message(status).decode(errors="replace")
            self.ReleaseStatus(status)
            from qdeploy.core.reasons import onnxruntime_reason  # not at the top: a cold start pays for it

            raise OnnxRuntimeError(onnxruntime_reason(text)) from OnnxRuntimeError(text)


def _find() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise ModuleNotFoundError(f"No module named '{PACKAGE}'", name=PACKAGE)
    capi = Path(folders[0], "capi")
    file = next((f for pattern in LIBRARIES for f in sorted(capi.glob(pattern))), None)
    if file is None:
        raise ModuleNotFoundError(f"{capi} holds no library of ONNX Runtime", name=__name__)
    return file


try:
    API = _Api(_find())
except (OSError, AttributeError) as error:
    raise MissingDependencyError(
        f"the library of ONNX Runtime cannot be loaded: {error}", fix="install onnxruntime again"
    ) from error
VERSION = API.version


@cache
def environment() -> c_void_p:
    """Make what all models share; two threads get the same."""
    made = c_void_p()
    API.CreateEnv(SILENT, b"qdeploy", byref(made))
    return made


def try_environment() -> None:
    """Make it ahead, in a thread; who opens a model is told what is wrong."""
    with suppress(OnnxRuntimeError):
        environment()


@cache
def _memory() -> c_void_p:
    made = c_void_p()
    API.CreateCpuMemoryInfo(_DEVICE_ALLOCATOR, _DEFAULT_MEMORY, byref(made))
    return made


_INPUTS = (c_char_p * 1)(b"image")
_OUTPUTS = (c_char_p * 2)(b"logits", b"probabilities")


class Model:
    """An ONNX file opened for the CPU: ``image`` of uint8 in, ``logits`` and ``probabilities`` of float32 out."""

    def __init__(self, data: bytes, threads: int, target: str) -> None:
        """Open the bytes of an ONNX file; nothing of them is needed afterwards.

        Args:
            data: The file.
            threads: Threads of one run.
            target: What the file was made for, as its card says.

        Raises:
            OnnxRuntimeError: If it is refused.
        """
        options, session = c_void_p(), c_void_p()
        API.CreateSessionOptions(byref(options))
        try:
            API.SetIntraOpNumThreads(options, threads)
            API.SetInterOpNumThreads(options, 1)
            API.SetSessionLogSeverityLevel(options, SILENT)
            for key, value in session_entries(target).items():
                API.AddSessionConfigEntry(options, key.encode(), value.encode())
            API.CreateSessionFromArray(environment(), data, len(data), options, byref(session))
        finally:
            API.ReleaseSessionOptions(options)
        self._session = session
        # when the last user is gone, so that close() takes nothing from a run; not at exit, where daemons may still run
        weakref.finalize(self, API.ReleaseSession, session).atexit = False

    def run(self, images: Any, shape: Sequence[int], logits: Any, probabilities: Any, classes: int) -> None:
        """Run the graph; other threads go on meanwhile.

        Args:
            images: The uint8 values: bytes, or the address of contiguous memory.
            shape: Shape of the images, ``B, S, S, 3``; so many bytes are read.
            logits: Where B x classes float32 are written: a ctypes array, or an address.
            probabilities: Where B x classes float32 are written, as for ``logits``.
            classes: Values of each image.

        Raises:
            OnnxRuntimeError: If it fails.
        """
        count = shape[0]
        values: list[c_void_p] = []
        try:
            values.append(_tensor(images, _UINT8, shape, 1))
            values += [_tensor(answer, _FLOAT, (count, classes), 4) for answer in (logits, probabilities)]
            image, answers = (c_void_p * 1)(values[0]), (c_void_p * 2)(*values[1:])
            API.Run(self._session, None, _INPUTS, image, 1, _OUTPUTS, 2, answers)
        finally:
            for value in values:
                API.ReleaseValue(value)


def _tensor(place: Any, kind: int, shape: Sequence[int], item_bytes: int) -> c_void_p:
    """Return a view of our memory; ONNX Runtime copies and frees nothing of it."""
    value, sides = c_void_p(), (c_int64 * len(shape))(*shape)
    size_bytes = item_bytes * math.prod(shape)
    API.CreateTensorWithDataAsOrtValue(_memory(), place, size_bytes, sides, len(shape), kind, byref(value))
    return value
