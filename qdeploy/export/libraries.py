"""Compiled libraries beside the model files of an export, for devices that have no compiler."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from qdeploy.core.artifact import ONNX_FILES, Artifact, model_files, read_artifact
from qdeploy.core.errors import InputError, MissingDependencyError
from qdeploy.core.files import write_bytes
from qdeploy.native.library import compiler, library_of
from qdeploy.native.prebuilt import architecture_here, architecture_of, library_file, sealed_library

HERE = "here"
CROSS_COMPILERS = {
    "aarch64": "aarch64-linux-gnu-gcc",
    "armhf": "arm-linux-gnueabihf-gcc",
    "riscv64": "riscv64-linux-gnu-gcc",
    "x86_64": "x86_64-linux-gnu-gcc",
}
"""By the kind of CPU, as Debian and its relatives name them."""


def library_compilers(text: str) -> dict[str, Path]:
    """Find the compilers of libraries.

    Args:
        text: Between commas: ``here`` for this machine's kind of CPU, a key of ``CROSS_COMPILERS``, or a compiler.

    Returns:
        Each compiler by the name that was given.

    Raises:
        InputError: If nothing is named.
        MissingDependencyError: If one of them is not installed.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise InputError("`native_library` names nothing", fix=f"give {HERE}, {', '.join(CROSS_COMPILERS)}")
    return {name: _compiler(name) for name in names}


def _compiler(name: str) -> Path:
    if name in (HERE, architecture_here()):
        return compiler()
    command = CROSS_COMPILERS.get(name, name)
    if (found := shutil.which(command)) is None:
        fix = f"install it; `native_library` takes {HERE}, {', '.join(CROSS_COMPILERS)} and commands of compilers"
        raise MissingDependencyError(f"the C compiler {command} for a native library was not found", fix=fix)
    return Path(found).resolve()


def write_libraries(export: Path, names: str) -> list[Path]:
    """Compile the INT8 model files of an export, or its others if it has none, and put the libraries beside them.

    Args:
        export: The export's folder, or one model file.
        names: For which CPUs, as ``library_compilers`` takes them.

    Returns:
        The libraries; those of the same name are replaced.

    Raises:
        InputError: If the files are damaged.
        MissingDependencyError: If a compiler is not installed.
        UnsupportedError: If a model holds an operator without a kernel.
        EngineError: If a compiler fails.
    """
    tools = library_compilers(names)
    artifacts = [read_artifact(file, trusted=()) for file in model_files(export, [ONNX_FILES])]
    chosen = [a for a in artifacts if a.card.precision == "int8"] or artifacts
    return [_write(artifact, name, tool) for artifact in chosen for name, tool in tools.items()]


def _write(artifact: Artifact, name: str, tool: Path) -> Path:
    library = library_of(artifact, tool).read_bytes()
    made = architecture_of(library)
    if name in CROSS_COMPILERS and made != name:
        raise InputError(f"{tool} compiles for {made}, and not for {name}", fix="give another compiler")
    file = library_file(artifact.path, made)
    write_bytes(file, sealed_library(library, artifact))
    return file


def library_lines(files: Sequence[Path]) -> list[str]:
    """Say what was written, a line each."""
    return [f"{f}: {f.stat().st_size / 1e3:.0f} kB, for `engine=native` without a compiler" for f in files]
