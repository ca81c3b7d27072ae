"""A model file's library: the one beside it, or one compiled once for file, compiler and kernels, in the cache."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from qdeploy.core.artifact import Artifact
from qdeploy.core.errors import ArtifactError, EngineError, InputError, MissingDependencyError
from qdeploy.core.files import locked, sha256_of, write_bytes
from qdeploy.core.signing import TRUSTED
from qdeploy.data.places import cache_folder
from qdeploy.native.kernels import FLAGS, KERNEL_FILES, KERNELS
from qdeploy.native.prebuilt import DIGITS, architecture_here, kernels_sha256, library_file, library_files, read_library

COMPILERS = ("cc", "gcc", "clang")
FOLDER = "native"
"""In the cache."""
COMPILED_IN = ".compile"
"""Suffix of the folder in which a library is compiled."""
TIMEOUT_S = 600
_LOADED: dict[bytes, ctypes.CDLL] = {}
"""By checksum; a library is never unloaded."""


def load_library(artifact: Artifact) -> tuple[ctypes.CDLL, str | None]:
    """Load a model file's library: the one beside it if it is for this process and fits, else a compiled one.

    Returns:
        The library, and what the user should know: why one that lies beside the file is not used.

    Raises:
        ArtifactError: If the model holds what has no kernel, or is an engine.
        MissingDependencyError: If nothing fits and there is no compiler.
        InputError: If the cache cannot be written.
        EngineError: If the compiler fails, or the library cannot be loaded.
    """
    unfit, beside = None, _beside(artifact.path)
    unasked = beside is not None and not artifact.library and not artifact.keys
    if beside and not unasked:
        try:
            return _loaded_bytes(read_library(beside, artifact, artifact.keys), beside), None
        except (ArtifactError, EngineError) as error:
            unfit = str(error)
    try:
        file = library_of(artifact)
    except MissingDependencyError as error:
        others = ", ".join(p.name for p in library_files(artifact.path))
        why = unfit or (others and f"{others} beside the file is not for this kind of CPU")
        if unasked:
            why = f"{others} is a program and runs only if `engine=native` asks for it, or a key of {TRUSTED} signed it"
        raise MissingDependencyError("; ".join(filter(None, (why, error.what))), fix=error.fix) from error
    return _loaded(str(file), file), unfit and f"compiled here, since {unfit}"


def _beside(model: Path) -> Path | None:
    """Return the library for this process beside a model file, if there is one."""
    here = architecture_here()
    file = library_file(model, here) if here else None
    return file if file and os.path.lexists(file) else None


def _loaded_bytes(data: bytes, file: Path) -> ctypes.CDLL:
    """Load the bytes that were checked, and not what may lie in their place by now; the same bytes once a process.

    Their file in memory stays open: the loader would take another one of the same number for this library.
    """
    digest = data[-DIGITS:]
    if digest not in _LOADED:
        if not hasattr(os, "memfd_create"):  # a Python that was built for a C library before 2.27
            raise EngineError(f"{file} cannot be loaded: this Python has no files in memory")
        try:
            handle = os.memfd_create(file.name)
            with os.fdopen(handle, "wb", closefd=False) as stream:
                stream.write(data)
        except OSError as error:
            raise EngineError(f"{file} cannot be loaded: {error.strerror}", fix="use another `engine`") from error
        try:
            _LOADED[digest] = _loaded(f"/proc/self/fd/{handle}", file)
        except EngineError:
            os.close(handle)
            raise
    return _LOADED[digest]


def _loaded(place: str, file: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(place)
    except OSError as error:
        said = str(error).replace(place, str(file))
        raise EngineError(f"{file} cannot be loaded: {said}", fix="remove it; it is compiled again") from error


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


def library_of(artifact: Artifact, tool: Path | None = None) -> Path:
    """Return the compiled library of a model file; it is compiled if it is not in the cache.

    Args:
        artifact: The model file.
        tool: The compiler; by default the one for this machine.

    Raises:
        ArtifactError: If the model holds what has no kernel, or is an engine.
        MissingDependencyError: If there is no compiler.
        InputError: If the cache cannot be written.
        EngineError: If the compiler fails.
    """
    tool = tool or compiler()
    folder = cache_folder() / FOLDER
    file = folder / f"{_key(artifact, tool)}.so"
    if file.is_file():
        _clear(file)
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


def _clear(file: Path) -> None:
    """Remove what a process left that was killed once its library was in its place."""
    work = file.with_suffix(COMPILED_IN)
    if work.exists():
        with suppress(OSError), locked(file.with_suffix(".lock"), wait=True):
            shutil.rmtree(work, ignore_errors=True)


def _key(artifact: Artifact, tool: Path) -> str:
    """Name what a library depends on: the file, the kernels, the compiler, the kind of machine."""
    used = tool.stat()
    words = (artifact.sha256, kernels_sha256(), *FLAGS, str(tool), used.st_size, used.st_mtime_ns, platform.machine())
    return sha256_of("\n".join(map(str, words)).encode())[:40]


def _compile(artifact: Artifact, tool: Path, file: Path) -> None:
    """Compile in a folder of its own beside the library, and put the library in its place in one step.

    Whoever calls holds the library's lock: what is in the folder was left by a process that was killed.
    """
    from qdeploy.native.source import model_source  # with numpy, which a compiled model does without

    artifact.require_plain("the native engine")
    source = model_source(artifact)
    work = file.with_suffix(COMPILED_IN)
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
