"""The whole C of a model file: compile what the file holds, and put the frame around it.

It includes ``kernels.KERNEL_FILES`` and is compiled with ``kernels.FLAGS``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from qdeploy.core.artifact import Artifact
from qdeploy.core.errors import ArtifactError, one_line
from qdeploy.native.check import require_sound
from qdeploy.native.emit import emit, memory_needed
from qdeploy.native.ir import Program
from qdeploy.native.kernels import STACK_BYTES
from qdeploy.native.lower import lower
from qdeploy.native.onnx_graph import read_graph
from qdeploy.native.passes import PASSES
from qdeploy.native.writer import Source

OWN_BYTES = 512
"""Stack of a program around a run."""

_HEAD = """/* {name}, compiled by qdeploy from a model file with SHA-256 {sha256}. */
#define QD_USED(use) {used}
#include "kernels.h"
#include "qdeploy_native.h"

#if defined(__GNUC__)
#define QD_ALIGNED __attribute__((aligned(64)))
#else
#define QD_ALIGNED
#endif

"""
_TAIL = """
size_t qdeploy_native_arena_bytes(void) {{ return {arena}; }}
int qdeploy_native_size(void) {{ return {size}; }}
int qdeploy_native_classes(void) {{ return {classes}; }}

int qdeploy_native_init(qdeploy_native *net, void *arena, size_t bytes, const char *tier) {{
  int i;
  if (bytes < {arena} || (uintptr_t)arena % 64) return 1;
  for (i = qd_best_tier(); i >= 0; i--)
    if (!tier || !strcmp(qd_tiers[i]->name, tier)) {{
      net->arena = arena;
      net->kernels = qd_tiers[i];
      return 0;
    }}
  return 2;
}}

const char *qdeploy_native_tier(const qdeploy_native *net) {{ return ((const qd_kernels *)net->kernels)->name; }}
"""


@dataclass(frozen=True)
class ModelSource:
    """A model's C and what it needs."""

    text: str
    """``model.c``."""
    arena_bytes: int
    constant_bytes: int


def program_of(artifact: Artifact) -> Program:
    """Return a model file's program, after the passes.

    Raises:
        ArtifactError: If the file is no ONNX file, or its graph contradicts itself.
        UnsupportedError: If it holds what has no kernel.
    """
    if artifact.engine is not None:
        raise ArtifactError(f"{artifact.path} is an engine, and the native engine compiles ONNX files")
    return program_from(artifact.data, artifact.card.preprocessing.size, str(artifact.path))


def program_from(data: bytes, size: int, name: str = "the model") -> Program:
    """Return the program of an ONNX file's bytes, after the passes.

    Args:
        data: A graph as an artifact's.
        size: Height and width of its images.
        name: What it is called in errors.

    Raises:
        ArtifactError: If its graph contradicts itself.
        UnsupportedError: If it holds what has no kernel.
    """
    try:
        with np.errstate(all="ignore"):  # what comes of numbers that cannot be is looked at below
            program = lower(read_graph(data), size)
            require_sound(program)
            for step in PASSES:
                program = step(program)
        require_sound(program)
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError, AttributeError) as error:
        what = f"{name} holds a graph that contradicts itself ({type(error).__name__}: {one_line(error)})"
        raise ArtifactError(what, fix="export it again") from error
    return program


def memory_of(artifact: Artifact) -> dict[str, int]:
    """Return what a model file needs as C, before anything is compiled.

    Returns:
        ``flash_bytes`` of weights and tables, ``ram_bytes`` of one context, ``stack_bytes`` at most; and of the whole
        program on a Cortex-M, as a kit has it, ``whole_flash_bytes`` and ``whole_ram_bytes``.

    Raises:
        ArtifactError: If the file is no ONNX file.
        UnsupportedError: If it holds what has no kernel.
    """
    return memory_of_program(program_of(artifact))


def memory_of_program(program: Program) -> dict[str, int]:
    """Return what a program needs, as ``memory_of`` does.

    Raises:
        UnsupportedError: If a kernel does not take a shape.
    """
    ram, flash, code = memory_needed(program)
    answers = sum(t.size_bytes for t in program.outputs)
    return {
        "flash_bytes": flash,
        "ram_bytes": ram,
        "stack_bytes": STACK_BYTES,
        "whole_flash_bytes": flash + code,
        "whole_ram_bytes": ram + program.image.size_bytes + answers + STACK_BYTES + OWN_BYTES,
    }


def model_source(artifact: Artifact) -> ModelSource:
    """Return a model file's C.

    Raises:
        ArtifactError: If the file is no ONNX file.
        UnsupportedError: If it holds what has no kernel.
    """
    made = emit(program_of(artifact))
    text = framed(
        made, artifact.card.name, artifact.sha256, artifact.card.preprocessing.size, len(artifact.card.labels)
    )
    return ModelSource(text, made.arena_bytes, made.constant_bytes)


def framed(made: Source, name: str, sha256: str, size: int, classes: int) -> str:
    """Put the functions of ``qdeploy_native.h`` around the C of a program."""
    safe = name.replace("*/", "")
    tail = _TAIL.format(arena=made.arena_bytes, size=size, classes=classes)
    used = " ".join(f"use({kernel})" for kernel in sorted(set(re.findall(r"k->(\w+)\(", made.text))))
    return _HEAD.format(name=safe, sha256=sha256, used=used) + made.text + tail
