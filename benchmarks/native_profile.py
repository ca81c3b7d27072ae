"""What each call of the native engine's C costs: the least of many runs, beside its multiplications.

    python benchmarks/native_profile.py [--tier avx2] [FILE ...]

The C of an INT8 file (by default the shipped one) is compiled with a clock around every call. ``peak`` is what the
call's multiplications take at the speed of this CPU's dot-product instruction (``roofline.py``).
"""

from __future__ import annotations

import argparse
import ctypes
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from roofline import peaks, products_of

from qdeploy.core.artifact import SHIPPED, Artifact, read_artifact
from qdeploy.native.emit import emit
from qdeploy.native.ir import Op
from qdeploy.native.kernels import FLAGS, KERNEL_FILES, KERNELS
from qdeploy.native.library import compiler
from qdeploy.native.source import framed, program_of
from qdeploy.native.writer import Source

RUNS = 1000
_CLOCK = """
#include <x86intrin.h>
QD_API uint64_t qd_clocks[{calls}];
QD_API uint64_t qd_clock(void) {{ return __rdtsc(); }}
"""
_TIMED = "  {{ uint64_t t_ = __rdtsc(); {call}; t_ = __rdtsc() - t_; if (t_ < qd_clocks[{i}]) qd_clocks[{i}] = t_; }}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="*", type=Path, default=[SHIPPED / "model.int8.onnx"], metavar="FILE")
    parser.add_argument("--tier", default="vnni", choices=("vnni", "avx2"))
    words = parser.parse_args()
    peak = peaks(words.tier)
    for file in words.files:
        profile(read_artifact(file), words.tier, peak)


def profile(artifact: Artifact, tier: str, peak: dict[str, float]) -> None:
    source = emit(program_of(artifact))
    spent = measured(artifact, source, tier)
    kinds: dict[str, list[float]] = {}
    print(f"{artifact.path}, {tier} kernels\n   us  million products  % of peak  call")
    for op, us in zip(source.operators, spent, strict=True):
        codes, floats = products_of(op)
        least = codes / peak["integer"] + floats / peak["float"]
        print(f"{us:7.2f} {(codes + floats) / 1e6:8.3f} {100 * least / max(us, 1e-9):6.0f}  {described(op)}")
        total = kinds.setdefault(f"{op.kind} on {'codes' if op.output.integer else 'floats'}", [0.0, 0.0, 0.0])
        total[:] = [total[0] + us, total[1] + least, total[2] + 1]
    for kind, (us, least, calls) in sorted(kinds.items(), key=lambda item: -item[1][0]):
        print(f"{us:7.2f} us in {calls:.0f} calls: {kind}, at the peak {least:.2f} us")
    print(f"{sum(spent):7.2f} us together\n")


def described(op: Op) -> str:
    """Say what an operator makes of what."""
    if op.kind == "stream":
        return " > ".join(described(part) for part in op.attributes["stages"])
    sides = " -> ".join("x".join(map(str, t.shape)) for t in (op.inputs[0], op.output))
    weight = op.attributes.get("weight")
    return f"{op.kind} {sides}" + (f", weights {'x'.join(map(str, weight.shape))}" if weight is not None else "")


def measured(artifact: Artifact, source: Source, tier: str) -> list[float]:
    """Return the least microseconds of each call."""
    calls = len(source.operators)
    head, function, run = source.text.partition("void qdeploy_native_run(")
    numbers = iter(range(calls))
    run = re.sub(
        r"^  ((?:k->|qd_)[^\n]*);$", lambda m: _TIMED.format(call=m[1], i=next(numbers)), run, flags=re.MULTILINE
    )
    assert next(numbers, None) is None, "every call has a clock"
    timed = Source(head + _CLOCK.format(calls=calls) + function + run, source.arena_bytes, source.constant_bytes)
    card = artifact.card
    text = framed(timed, card.name, artifact.sha256, card.preprocessing.size, len(card.labels))
    with tempfile.TemporaryDirectory() as folder:
        for kernel in KERNEL_FILES:
            shutil.copy(KERNELS / kernel, folder)
        (Path(folder) / "model.c").write_text(text)
        words = [compiler(), *FLAGS, "-fPIC", "-shared", "model.c", "-o", "model.so"]
        subprocess.run(words, cwd=folder, check=True)
        library = ctypes.CDLL(str(Path(folder) / "model.so"))
    return runs(library, artifact, source, tier)


def runs(library: Any, artifact: Artifact, source: Source, tier: str) -> list[float]:
    clocks = (ctypes.c_uint64 * len(source.operators)).in_dll(library, "qd_clocks")
    ctypes.memset(clocks, 0xFF, ctypes.sizeof(clocks))
    memory = np.zeros(source.arena_bytes + 64, np.uint8)
    arena = memory.ctypes.data + -memory.ctypes.data % 64
    context = (ctypes.c_void_p * 2)()
    library.qdeploy_native_init.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    if library.qdeploy_native_init(context, arena, source.arena_bytes, tier.encode()):
        raise SystemExit(f"this CPU has no kernels '{tier}'")
    image = np.ascontiguousarray(artifact.card.goldens.images[0])
    answers = np.zeros((2, len(artifact.card.labels)), np.float32)
    places = [ctypes.c_void_p(array.ctypes.data) for array in (image, *answers)]
    for _ in range(RUNS):
        library.qdeploy_native_run(context, *places)
    us = clocks_in_a_us(library)
    return [clock / us for clock in clocks]


def clocks_in_a_us(library: Any) -> float:
    library.qd_clock.restype = ctypes.c_uint64
    begin, first = time.perf_counter(), library.qd_clock()
    time.sleep(0.2)
    return float(library.qd_clock() - first) / (time.perf_counter() - begin) / 1e6


if __name__ == "__main__":
    main()
