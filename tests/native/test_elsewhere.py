"""The kit where this process cannot be: under sanitizers, and on another CPU."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from qdeploy.core.artifact import SHIPPED
from qdeploy.export import write_kits
from qdeploy.native import streams
from qdeploy.native.kernels import KERNELS, RESIZE_FILES
from qdeploy.native.simulate import simulate
from tests.native.compiled import TIERS, needs_compiler, write_programs
from tests.native.graphs import SIZE, image_of
from tests.native.test_operators import all_programs

pytestmark = [pytest.mark.slow, needs_compiler]


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    return write_kits(SHIPPED, ["native"], tmp_path)["native"]


def make(kit: Path, *words: str) -> str:
    made = subprocess.run(["make", *words], cwd=kit, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    return made.stdout


def test_sanitizers_find_nothing_in_any_tier(kit: Path) -> None:
    make(kit, "CFLAGS=-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -Werror", "classify")
    for tier in TIERS:
        words = ["./classify", "--selftest", "model.goldens"]
        done = subprocess.run(words, cwd=kit, capture_output=True, text=True, env={"QDEPLOY_TIER": tier})
        if done.returncode == 2 and not done.stderr:
            continue  # this CPU does not have the tier
        assert (done.returncode, done.stderr) == (0, ""), done.stderr[:3000]
        assert f"passed with {tier} kernels, 0 of 40" in done.stdout


@pytest.mark.parametrize("tool", ["gcc", "clang"])
def test_compilers_find_nothing_to_warn_of(kit: Path, tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    for words in ("", "-DQD_ONLY_C99"):
        make(kit, "clean")
        out = make(kit, f"CC={tool}", f"CFLAGS=-O1 -Wall -Wextra -pedantic -Werror {words}", "test")
        assert out.count("passed with") == 2
        assert out.count("0 of 40 answers differ") == 2


@pytest.mark.parametrize(
    ("tool", "version", "tiers"),
    [("gcc", 7, 1), ("gcc", 8, 3), ("aarch64-linux-gnu-gcc", 7, 1), ("aarch64-linux-gnu-gcc", 8, 2)],
)
def test_old_compilers_make_the_tiers_that_they_know(tool: str, version: int, tiers: int, tmp_path: Path) -> None:
    """What a compiler calls itself decides; ``vld1q_u8_x4`` came to gcc with 10."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    if tool == "gcc" and platform.machine() != "x86_64":
        pytest.skip("its tiers are those of x86-64")
    late = "#include <arm_neon.h>\n#pragma GCC poison vld1q_u8_x4\n" if tool != "gcc" else ""
    count = f'_Static_assert(sizeof qd_tiers / sizeof *qd_tiers == {tiers}, "tiers");\n'
    (tmp_path / "old.c").write_text(f'{late}#include "kernels.h"\n{count}')
    words = [tool, "-std=c11", "-U__GNUC__", f"-D__GNUC__={version}", "-fsyntax-only", f"-I{KERNELS}", "old.c"]
    made = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[:2000]


_FUZZ = """
#include <stdio.h>
#include <stdlib.h>
static unsigned state = 1;
static unsigned next(void) { return state = state * 1664525u + 1013904223u, state >> 16; }
typedef void run_function(const qdeploy_native *, const uint8_t *, float *, float *);
static void fuzz(run_function *run, size_t bytes, int images) {
  int tier, i, j;
  for (tier = 0; tier <= qd_best_tier(); tier++)
    for (i = 0; i < images; i++) {
      unsigned low = next() % 256, span = 1 + next() % (256 - low);
      uint8_t *image = malloc(IMAGE_BYTES);
      float *logits = malloc(16), *probabilities = malloc(16);
      qdeploy_native net;
      net.arena = aligned_alloc(64, bytes);
      net.kernels = qd_tiers[tier];
      memset(net.arena, (int)(next() % 256), bytes);
      for (j = 0; j < IMAGE_BYTES; j++) image[j] = (uint8_t)(i % 8 ? low + next() % span : i % 16 ? 255 : 0);
      run(&net, image, logits, probabilities);
      free(image);
      free(logits);
      free(probabilities);
      free(net.arena);
    }
}
static void photos(int count) {
  int i, j;
  for (i = 0; i < count; i++) {
    int width = 1 + (int)(next() % 150), height = 1 + (int)(next() % 150);
    int size = 1 + (int)(next() % 70), how = 1 + i % 2;
    size_t bytes = qdeploy_resize_bytes(width, height, size, how);
    uint8_t *photo = malloc((size_t)width * height * 3), *made = malloc((size_t)size * size * 3);
    void *work = malloc(bytes);
    for (j = 0; j < width * height * 3; j++) photo[j] = (uint8_t)next();
    if (qdeploy_resize(photo, width, height, made, size, how, work, bytes)) exit(3);
    free(photo);
    free(made);
    free(work);
  }
}
"""


@pytest.mark.parametrize("tool", ["gcc", "clang"])
def test_sanitizers_find_nothing_on_any_operator_over_random_images(tool: str, tmp_path: Path) -> None:
    """All memory is as large as the code says it needs, and not a byte more."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    programs = all_programs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "WORTH_BYTES", 1)
        sources = write_programs(programs, tmp_path, small=True)
    calls = [f"fuzz(qdeploy_native_g{i}_run, {s.arena_bytes}, 40);" for i, s in enumerate(sources.values())]
    text = (tmp_path / "all.c").read_text()
    resize = "".join(f'#include "{KERNELS / name}"\n' for name in RESIZE_FILES)
    main = "\n".join(
        [f"#define IMAGE_BYTES {3 * SIZE**2}", _FUZZ, "int main(void) {", *calls, "photos(200); return 0; }"]
    )
    (tmp_path / "fuzz.c").write_text(f"{text}\n{resize}{main}")
    flags = ["-std=c11", "-O1", "-g", "-ffp-contract=off", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    made = subprocess.run([tool, *flags, "fuzz.c", "-o", "fuzz"], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[:2000]
    done = subprocess.run(["./fuzz"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[:3000]


ELSEWHERE = {
    "aarch64 with dot products": ("aarch64-linux-gnu", "qemu-aarch64 -cpu max", ("c99", "neon")),
    "aarch64 without": ("aarch64-linux-gnu", "qemu-aarch64 -cpu cortex-a53", ("c99",)),
    "armhf": ("arm-linux-gnueabihf", "qemu-arm -cpu cortex-a7", ("c99",)),
    "armhf with fused products": ("arm-linux-gnueabihf", "qemu-arm -cpu max", ("c99",)),
}
"""Other CPUs: what the compiler's name begins with, the emulator, and the tiers that must be there."""
FUSED = {"armhf with fused products": "-mfpu=neon-vfpv4"}
"""Compiler's words for a CPU."""


def elsewhere(name: str) -> tuple[str, str, tuple[str, ...]]:
    """Return compiler, emulator and tiers of a CPU, or skip."""
    prefix, emulator, tiers = ELSEWHERE[name]
    for tool in (f"{prefix}-gcc", emulator.split()[0]):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    return f"{prefix}-gcc", f"{emulator} -L /usr/{prefix}", tiers


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_kit_gives_the_same_bits_on_another_cpu(kit: Path, name: str) -> None:
    tool, emulator, tiers = elsewhere(name)
    out = make(kit, f"CC={tool} {FUSED.get(name, '')}", "CFLAGS=-O2 -Werror", f"EMULATOR={emulator}", "test")
    for tier in {tiers[-1], "c99"}:
        assert f"passed with {tier} kernels, 0 of 40 answers differ" in out


_PRINTED = """
#include <stdio.h>
#include <stdlib.h>
typedef void run_function(const qdeploy_native *, const uint8_t *, float *, float *);
static void print(run_function *run, size_t bytes, const uint8_t *image) {
  int tier, i;
  for (tier = 0; tier <= qd_best_tier(); tier++) {
    float logits[4], probabilities[4];
    qdeploy_native net;
    net.arena = aligned_alloc(64, (bytes + 63) / 64 * 64);
    net.kernels = qd_tiers[tier];
    run(&net, image, logits, probabilities);
    printf("%s", qd_tiers[tier]->name);
    for (i = 0; i < 4; i++) printf(" %08x %08x", (unsigned)qd_bits(logits[i]), (unsigned)qd_bits(probabilities[i]));
    printf("\\n");
    free(net.arena);
  }
}
"""


@pytest.mark.parametrize("name", ELSEWHERE)
def test_every_operator_gives_the_same_bits_on_another_cpu(name: str, tmp_path: Path) -> None:
    tool, emulator, tiers = elsewhere(name)
    programs, image = all_programs(), image_of(1)
    sources = write_programs(programs, tmp_path, small=False)
    values = ", ".join(map(str, image.reshape(-1)))
    calls = [f"print(qdeploy_native_g{i}_run, {s.arena_bytes}, image);" for i, s in enumerate(sources.values())]
    main = ["int main(void) {", f"static const uint8_t image[] = {{{values}}};", *calls, "return 0; }"]
    (tmp_path / "main.c").write_text("\n".join(['#include "all.c"', _PRINTED, *main]))
    flags = ["-std=c11", "-O1", "-ffp-contract=off", "-static", *FUSED.get(name, "").split()]
    made = subprocess.run([tool, *flags, "main.c", "-o", "main"], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[:2000]
    done = subprocess.run([*emulator.split(), "./main"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[:3000]
    expected = []
    for program in programs.values():
        found = simulate(program, image)
        pair = (found[t.name].reshape(-1).astype(np.float32).view(np.uint32) for t in program.outputs)
        bits = " ".join(f"{x:08x} {y:08x}" for x, y in zip(*pair, strict=True))
        expected += [f"{tier} {bits}" for tier in tiers]
    assert done.stdout.splitlines() == expected
