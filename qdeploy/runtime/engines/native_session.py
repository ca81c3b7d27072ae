"""The model compiled to C for this machine; see ``qdeploy.native``. Needs a C compiler the first time."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_void_p
from itertools import pairwise
from typing import TYPE_CHECKING

from qdeploy.core.artifact import Artifact
from qdeploy.core.errors import EngineError
from qdeploy.native.library import load_library
from qdeploy.runtime.engines.addresses import placed
from qdeploy.runtime.session import Rows, Session

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ALIGNMENT = 64
FLOAT_BYTES = 4


class _Context(ctypes.Structure):
    _fields_ = [("arena", c_void_p), ("kernels", c_void_p)]


class Model:
    """A compiled model; each run has a context of its own, and contexts are used again."""

    def __init__(self, artifact: Artifact) -> None:
        """Compile the file, or find it compiled, and load it.

        Raises:
            EngineError: If the library cannot be loaded.
        """
        library, self.note = load_library(artifact)
        library.qdeploy_native_arena_bytes.restype = c_size_t
        library.qdeploy_native_init.argtypes = (POINTER(_Context), c_void_p, c_size_t, c_char_p)
        library.qdeploy_native_tier.restype = c_char_p
        library.qdeploy_native_run.argtypes = (POINTER(_Context), c_void_p, c_void_p, c_void_p)
        library.qdeploy_native_run.restype = None
        self._library, self._size = library, int(library.qdeploy_native_arena_bytes())
        self._free: list[tuple[_Context, object]] = []
        self.classes, self.image_bytes = int(library.qdeploy_native_classes()), 3 * library.qdeploy_native_size() ** 2
        first = self._new()
        self.tier: str = library.qdeploy_native_tier(byref(first[0])).decode()
        self._free.append(first)

    def _new(self) -> tuple[_Context, object]:
        memory = (c_int * ((self._size + ALIGNMENT) // 4 + 1))()
        place = ctypes.addressof(memory)
        context = _Context()
        failed = self._library.qdeploy_native_init(byref(context), place + -place % ALIGNMENT, self._size, None)
        if failed:
            raise EngineError(f"the compiled model refuses its memory (code {failed})")
        return context, memory

    def run(self, images: int, count: int, logits: int, probabilities: int) -> None:
        """Classify images at an address one after the other; other threads go on meanwhile."""
        try:
            pair = self._free.pop()  # a context that nobody else uses
        except IndexError:
            pair = self._new()
        call, context, row = self._library.qdeploy_native_run, byref(pair[0]), FLOAT_BYTES * self.classes
        try:
            for i in range(count):
                call(context, images + i * self.image_bytes, logits + i * row, probabilities + i * row)
        finally:
            self._free.append(pair)


class NativeSession(Session):
    """A session of the native engine; see ``qdeploy.runtime.session.Session``."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        model = Model(artifact)
        self._threads = threads
        super().__init__(artifact, model, f"native C, {model.tier} kernels", model.note)

    def _infer(self, opened: Model, images_BSSC: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        images, answers, places = placed(images_BSSC, self.classes)
        self._run(opened, len(images), *places)
        return answers[0], answers[1]

    def _infer_bytes(self, opened: Model, images: bytes, count: int) -> tuple[Rows, Rows]:
        k = self.classes
        logits, probabilities = ((c_float * (count * k))() for _ in range(2))
        place = ctypes.cast(c_char_p(images), c_void_p).value or 0
        self._run(opened, count, place, ctypes.addressof(logits), ctypes.addressof(probabilities))
        rows = [slice(i * k, (i + 1) * k) for i in range(count)]
        return [logits[row] for row in rows], [probabilities[row] for row in rows]

    def _run(self, opened: Model, count: int, images: int, logits: int, probabilities: int) -> None:
        """Share the images of a batch between the threads; one image has one."""
        workers = min(self._threads, count)
        if workers == 1:
            opened.run(images, count, logits, probabilities)
            return
        ends = [count * i // workers for i in range(workers + 1)]
        row = FLOAT_BYTES * self.classes
        with ThreadPoolExecutor(workers) as pool:
            jobs = [
                pool.submit(
                    opened.run, images + a * opened.image_bytes, b - a, logits + a * row, probabilities + a * row
                )
                for a, b in pairwise(ends)
            ]
            for job in jobs:
                job.result()
