"""Graphs with seeded changes: refused by an error of ours, or their C stays in its memory and gives the same bits."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qdeploy.core.errors import ArtifactError
from qdeploy.native import streams
from qdeploy.native.emit import emit
from qdeploy.native.ir import Program
from qdeploy.native.kernels import KERNEL_FILES, KERNELS
from qdeploy.native.simulate import simulate
from qdeploy.native.source import program_from
from tests.native.compiled import needs_compiler
from tests.native.graphs import CASES, SIZE, case_of, image_of
from tests.native.mutations import mutated

IMAGES = 2
SANITIZERS = ("-O1", "-g", "-ffp-contract=off", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def programs(seeds: range, counts: Counter[str]) -> Iterator[tuple[int, Program]]:
    """Yield the programs of what is taken; whatever else than our own error is raised is a failure."""
    models = [case_of(name)[0] for name in CASES]
    for seed in seeds:
        random = np.random.default_rng(seed)
        model = mutated(models[random.integers(len(models))], random)
        try:
            program = program_from(model.SerializeToString(), SIZE)
            emit(program)
        except ArtifactError:
            counts["refused"] += 1
        else:
            counts["taken"] += 1
            yield seed, program


def answers(program: Program, image: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """Return logits and probabilities by the simulator; None if a number on the way is not finite."""
    with np.errstate(all="ignore"):
        found = simulate(program, image)
    if not all(np.isfinite(v).all() for v in found.values() if v.dtype == np.float32):
        return None
    return np.concatenate([found[t.name].reshape(-1) for t in program.outputs])


def test_changed_graphs_are_refused_by_our_errors_or_can_be_simulated() -> None:
    counts: Counter[str] = Counter()
    for seed, program in programs(range(250), counts):
        with np.errstate(all="ignore"):
            found = simulate(program, image_of(seed))
        for tensor in (op.output for op in program.ops):
            assert found[tensor.name].shape == tensor.shape, (seed, tensor)
    assert counts["taken"] > 40
    assert counts["refused"] > 100


_MAIN = """
#include <stdio.h>
#include <stdlib.h>
typedef void run_function(const qdeploy_native *, const uint8_t *, float *, float *);
static void one(run_function *run, size_t bytes, size_t logits, size_t probabilities, FILE *images) {
  int tier, i;
  for (i = 0; i < IMAGES; i++) {
    uint8_t *image = malloc(IMAGE_BYTES);
    if (fread(image, 1, IMAGE_BYTES, images) != IMAGE_BYTES) exit(3);
    for (tier = 0; tier <= qd_best_tier(); tier++) {
      float *a = malloc(4 * logits), *b = malloc(4 * probabilities);
      qdeploy_native net;
      net.arena = aligned_alloc(64, bytes);
      net.kernels = qd_tiers[tier];
      memset(net.arena, 0xA5, bytes);
      run(&net, image, a, b);
      fwrite(a, 4, logits, stdout);
      fwrite(b, 4, probabilities, stdout);
      free(a), free(b), free(net.arena);
    }
    free(image);
  }
}
"""


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("tool", ["gcc", "clang"])
def test_what_is_taken_runs_clean_under_sanitizers_with_the_simulators_bits(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    monkeypatch.setattr(streams, "WORTH_BYTES", 1)
    taken = list(programs(range(1000, 1400) if tool == "gcc" else range(2000, 2400), Counter()))
    sources = [emit(program, prefix=f"g{i}_") for i, (_, program) in enumerate(taken)]
    calls = [
        f"  one(qdeploy_native_g{i}_run, {s.arena_bytes}, {p.logits.size}, {p.probabilities.size}, images);"
        for i, (s, (_, p)) in enumerate(zip(sources, taken, strict=True))
    ]
    for kernel in KERNEL_FILES:
        shutil.copy(KERNELS / kernel, tmp_path)
    includes = (f'#include "{name}"' for name in ("kernels.h", "qdeploy_native.h"))
    sizes = (f"#define IMAGES {IMAGES}", f"#define IMAGE_BYTES {3 * SIZE**2}")
    head = [*includes, *sizes, "#define QD_ALIGNED __attribute__((aligned(64)))"]
    main = ["int main(void) {", '  FILE *images = fopen("images", "rb");', *calls, "  return fclose(images);", "}"]
    (tmp_path / "all.c").write_text("\n".join([*head, *(s.text for s in sources), _MAIN, *main]))
    pictures = [[image_of(IMAGES * seed + i) for i in range(IMAGES)] for seed, _ in taken]
    (tmp_path / "images").write_bytes(b"".join(p.tobytes() for some in pictures for p in some))
    words = [tool, "-std=c11", *SANITIZERS, "all.c", "-o", "all"]
    made = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[:3000]
    done = subprocess.run(["./all"], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr[:3000]
    found = np.frombuffer(done.stdout, np.float32)
    tiers = len(found) // sum(IMAGES * sum(t.size for t in p.outputs) for _, p in taken)
    at = compared = 0
    for (seed, program), images in zip(taken, pictures, strict=True):
        for image in images:
            expected = answers(program, image)
            for _ in range(tiers):
                size = sum(t.size for t in program.outputs)
                if expected is not None:
                    assert np.array_equal(found[at : at + size], expected), seed
                    compared += 1
                at += size
    assert at == len(found)
    assert compared > len(taken) * tiers
