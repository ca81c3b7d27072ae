"""What a model needs at least on this CPU: its products over what the CPU's dot-product instruction makes a second.

The instructions are timed here, in bursts of a few microseconds of which the fastest counts, from registers alone: no
kernel can be faster, and one at 100 % would load, round and store for nothing.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from pathlib import Path

from qdeploy.native.ir import Op, Program
from qdeploy.native.library import compiler
from qdeploy.native.pack import kernel_weight

BURSTS = 1000
LOOPS = 2000
AT_ONCE = 12
"""Independent sums, which hide how long one instruction takes."""
INSTRUCTIONS = {
    "vnni": {
        "integer": ("vpdpbusd %%zmm14, %%zmm15, %%zmm{i}\\n", 64),
        "float": ("vfmadd231ps %%zmm14, %%zmm15, %%zmm{i}\\n", 16),
    },
    "avx2": {
        "integer": ("vpmaddwd %%ymm14, %%ymm15, %%ymm13\\nvpaddd %%ymm13, %%ymm{i}, %%ymm{i}\\n", 16),
        "float": ("vfmadd231ps %%ymm14, %%ymm15, %%ymm{i}\\n", 8),
    },
}
"""Of a tier: the instructions that add up products of codes or of floats, and how many products."""
_SOURCE = """#include <time.h>
double {name}_ns(void) {{
  double best = 1e18;
  int burst;
  for (burst = 0; burst < {bursts}; burst++) {{
    struct timespec begin, end;
    double ns;
    long n = {loops};
    clock_gettime(CLOCK_MONOTONIC, &begin);
    __asm__ volatile("1:\\n{body}dec %0\\njnz 1b\\n" : "+r"(n) : : "cc", {registers});
    clock_gettime(CLOCK_MONOTONIC, &end);
    ns = (end.tv_sec - begin.tv_sec) * 1e9 + (end.tv_nsec - begin.tv_nsec);
    if (ns < best) best = ns;
  }}
  return best;
}}
"""


def peaks(tier: str) -> dict[str, float]:
    """Return the products of codes and of floats that one core of this CPU makes in a microsecond, by measurement."""
    registers = ", ".join(f'"xmm{i}"' for i in range(16))
    texts = []
    for kind, (instruction, _) in INSTRUCTIONS[tier].items():
        body = "".join(instruction.format(i=i) for i in range(AT_ONCE))
        texts.append(_SOURCE.format(name=kind, bursts=BURSTS, loops=LOOPS, body=body, registers=registers))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "peaks.c"
        file.write_text("#define _POSIX_C_SOURCE 199309L\n" + "".join(texts))
        library = file.with_suffix(".so")
        subprocess.run([compiler(), "-O1", "-fPIC", "-shared", file, "-o", library], check=True)
        loaded = ctypes.CDLL(str(library))
    found = {}
    for kind, (_, products) in INSTRUCTIONS[tier].items():
        run = getattr(loaded, f"{kind}_ns")
        run.restype = ctypes.c_double
        found[kind] = products * AT_ONCE * LOOPS * 1e3 / run()
    return found


def least_us(program: Program, peak: dict[str, float]) -> dict[str, float]:
    """Return a program's products, in millions, and the microseconds that they take at the peak."""
    made = [products_of(op) for op in program.ops]
    codes, floats = (sum(part) for part in zip(*made, strict=True))
    us = codes / peak["integer"] + floats / peak["float"]
    return {
        "million_products": round((codes + floats) / 1e6, 2),
        "of_floats": round(floats / 1e6, 2),
        "least_us": round(us, 1),
    }


def products_of(op: Op) -> tuple[int, int]:
    """Return an operator's products of codes and of floats.

    Those of a window's rows that lie wholly above or below the image are left out, as the kernels do.
    """
    if op.kind == "stream":
        codes, floats = zip(*map(products_of, op.attributes["stages"]), strict=True)
        return sum(codes), sum(floats)
    count = _convolved(op) if op.kind == "conv" else 0
    if op.kind in ("linear", "matmul"):
        count = op.output.size * op.inputs[0].shape[-1]
    return (count, 0) if op.output.integer else (0, count)


def _convolved(op: Op) -> int:
    a, height, places = op.attributes, op.inputs[0].shape[2], op.output.shape[2]
    _, inputs, rows, columns = kernel_weight(op).shape
    inside = sum(
        0 <= y * a["strides"][0] + r * a["dilations"][0] - a["pads"][0] < height
        for y in range(places)
        for r in range(rows)
    )
    return op.output.size // places * inside * inputs * columns
