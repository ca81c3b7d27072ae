"""A model file's library: compiled once for a file, a compiler and a version of the kernels, kept in the cache."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from qdeploy.core.artifact import Artifact
from qdeploy.core.errors import EngineError, InputError, MissingDependencyError
from qdeploy.core.files import locked, sha256_of, write_bytes
from qdeploy.data.places import cache_folder
from qdeploy.native.kernels import FLAGS, KERNEL_FILES, KERNELS

COMPILERS = ("cc", "gcc", "clang")
FOLDER = "native"
"""In the cache."""
TIMEOUT_S = 600


def compiler() -> Path:
    """Return the C compiler: ``$CC``, or the first of ``COMPILERS`` on the path.

    Raises:
        MissingDependencyError: If there is none.
    """
    wanted = os.environ.get("CC")
    found = next(filter(None, map(shutil.which, [wanted] if wanted else COMPILERS)), None)
    if found is None:
        what = f"the C compiler '{wanted}' of CC was not found" if wanted else "the native engine needs a C compiler"
        raise MissingDependencyError(what, fix="install gcc or clang, or use another `engine`")
    return Path(found).resolve()


def library_of(artifact: Artifact) -> Path:
    """Return the compiled library of a model file; it is compiled if it is not in the cache.

    Raises:
        ArtifactError: If the model holds what has no kernel, or is an engine.
        MissingDependencyError: If there is no compiler.
        InputError: If the cache cannot be written.
        EngineError: If the compiler fails.
    """
    tool = compiler()
    folder = cache_folder() / FOLDER
    file = folder / f"{_key(artifact, tool)}.so"
    if file.is_file():
        return file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(file.with_suffix(".lock"), wait=True):
            if not file.is_file():
                _compile(artifact, tool, file)
    except OSError as error:
        fix = "free some space, or set QDEPLOY_CACHE to a folder that can be written"
        raise InputError(f"{folder} cannot hold the compiled model: {error.strerror}", fix=fix) from error
    return file


def _key(artifact: Artifact, tool: Path) -> str:
    """Name what a library depends on: the file, the kernels, the compiler, the kind of machine."""
    used = tool.stat()
    kernels = "".join(sha256_of((KERNELS / name).read_bytes()) for name in KERNEL_FILES)
    words = (artifact.sha256, kernels, *FLAGS, str(tool), used.st_size, used.st_mtime_ns, platform.machine())
    return sha256_of("\n".join(map(str, words)).encode())[:40]


def _compile(artifact: Artifact, tool: Path, file: Path) -> None:
    """Compile in a folder of its own beside the library, and put the library in its place in one step.

    Whoever calls holds the library's lock: what is in the folder was left by a process that was killed.
    """
    from qdeploy.native.source import model_source  # with numpy, which a compiled model does without

    source = model_source(artifact)
    work = file.with_suffix(".compile")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        for kernel in KERNEL_FILES:
            shutil.copy(KERNELS / kernel, work)
        (work / "model.c").write_text(source.text)
        words = [str(tool), *FLAGS, "-fPIC", "-shared", "model.c", "-o", "model.so"]
        try:
            made = subprocess.run(words, cwd=work, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise EngineError(f"{tool} compiled for {TIMEOUT_S} s without an end") from error
        if made.returncode:
            log = file.with_suffix(".log")
            log.write_text(f"{' '.join(words)}\n{made.stderr}")
            said = next((line for line in made.stderr.splitlines() if "error" in line), made.stderr[:200].strip())
            fix = f"its whole message is in {log}; use another `engine`, or another compiler by CC"
            raise EngineError(f"{tool} could not compile {artifact.path}: {said[:200]}", fix=fix)
        write_bytes(file, (work / "model.so").read_bytes())
    finally:
        shutil.rmtree(work, ignore_errors=True)
