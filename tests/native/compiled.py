"""Programs compiled together into one library, and run tier by tier."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qdeploy.native.emit import emit
from qdeploy.native.ir import Program, Tensor
from qdeploy.native.kernels import FLAGS, KERNEL_FILES, KERNELS
from qdeploy.native.writer import Source

TIERS = ("c99", "avx2", "vnni")
COMPILER = shutil.which("cc") or shutil.which("gcc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler is installed")
_HEAD = """#include "kernels.h"
#include "qdeploy_native.h"
#define QD_ALIGNED __attribute__((aligned(64)))
QD_API int best(void) { return qd_best_tier(); }
QD_API const void *tier(int i) { return qd_tiers[i]; }
"""


def write_programs(programs: dict[str, Program], folder: Path, small: bool) -> dict[str, Source]:
    """Write ``all.c`` with functions ``qdeploy_native_g0_run`` and so on, in the order of what is returned."""
    sources = {name: emit(p, reuse=False, prefix=f"g{i}_") for i, (name, p) in enumerate(programs.items())}
    for i, (name, p) in enumerate(programs.items() if small else ()):
        sources[f"{name}, small"] = emit(p, prefix=f"g{i + len(programs)}_")
    for kernel in KERNEL_FILES:
        shutil.copy(KERNELS / kernel, folder)
    texts = [s.text.replace("void qdeploy_native_g", "QD_API void qdeploy_native_g") for s in sources.values()]
    (folder / "all.c").write_text("\n".join([_HEAD, *texts]))
    return sources


class Net(ctypes.Structure):
    _fields_ = [("arena", ctypes.c_void_p), ("kernels", ctypes.c_void_p)]


class Compiled:
    """Programs by name, with memory that is not used again: every tensor can be read after a run.

    With ``small``, each is also compiled as the product does it, with streams and memory used again.
    """

    def __init__(self, programs: dict[str, Program], folder: Path, *flags: str, small: bool = False) -> None:
        self.programs = programs | ({f"{name}, small": p for name, p in programs.items()} if small else {})
        self.sources = write_programs(programs, folder, small)
        words = [str(COMPILER), *FLAGS, *flags, "-Wall", "-Wextra", "-pedantic", "-Werror", "-fPIC", "-shared"]
        made = subprocess.run([*words, "all.c", "-o", "all.so"], cwd=folder, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr[:2000]
        self.library = ctypes.CDLL(str(folder / "all.so"))
        self.library.tier.restype = ctypes.c_void_p
        self.tiers = TIERS[: self.library.best() + 1]

    def run(self, name: str, tier: str, image: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Return every tensor by name, its axes in ONNX's order; a guard behind the arena must stay as it is."""
        source, size = self.sources[name], self.sources[name].arena_bytes
        memory = np.full(size + 192, 0xA5, np.uint8)
        start = -memory.ctypes.data % 64
        arena = memory[start : start + size]
        net = Net(arena.ctypes.data, self.library.tier(TIERS.index(tier)))
        outputs = [np.zeros(t.size, np.float32) for t in self.programs[name].outputs]
        run = getattr(self.library, f"qdeploy_native_g{list(self.sources).index(name)}_run")
        places = [np.ascontiguousarray(image).ctypes, *(a.ctypes for a in outputs)]
        run(ctypes.byref(net), *(ctypes.c_void_p(place.data) for place in places))
        assert (memory[:start] == 0xA5).all()
        assert (memory[start + size :] == 0xA5).all(), "written behind the arena"
        found = {t.name: self._read(t, arena, place, layout) for t, (place, layout) in source.places.items()}
        return {**found, "logits": outputs[0], "probabilities": outputs[1]}

    def _read(self, tensor: Tensor, arena: NDArray[np.uint8], place: int, layout: Any) -> NDArray[Any]:
        order = layout.orders[tensor]
        flat = arena[place : place + tensor.size_bytes].view(np.uint8 if tensor.integer else np.float32)
        return flat.reshape([tensor.shape[i] for i in order]).transpose(np.argsort(order))
