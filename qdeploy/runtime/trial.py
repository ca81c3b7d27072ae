"""A graph that nobody here has made is opened and run once in a process of its own, with limits of memory and time.

A few bytes can ask for anything: a Loop of 2^60 rounds, an Expand to 2^40 values, a million rows of padding. What such
a graph takes shows only when it runs, and then no library lets go of it. What a process got through is remembered in
the cache by the graph's hash, so that a model file is tried once on each machine; exports remember what they made.

The limits are for one image on one core: ``MEMORY_BYTES`` and ``CPU_S``, and more for larger files. Who needs more sets
``QDEPLOY_TRIAL_GIB`` and ``QDEPLOY_TRIAL_SECONDS``.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdeploy.core.artifact import SHIPPED, Artifact
from qdeploy.core.errors import ArtifactError, InputError
from qdeploy.core.interpreter import python_command
from qdeploy.core.onnx_bytes import graph_parts

if TYPE_CHECKING:
    import onnxruntime as ort

MEMORY_BYTES = 1 << 30
FILE_COPIES = 6
"""A file's bytes, its parsed form and the packed weights: as many times its size are allowed beside that."""
CPU_S = 10.0
CPU_S_OF_A_MIB = 0.15
"""Seconds for each MiB of the file: 10 for an image of the largest ViT at 5 GFLOP/s."""
PATIENCE = 20
"""Times the CPU time that may pass by the clock: the machine may be busy."""
_KEY_VERSION = b"1"
_NO_MEMORY = ("bad_alloc", "bad allocation", "allocate memory", "not enough memory", "out of memory", "length_error")
"""What ONNX Runtime says of too little memory."""
_TYPES = {
    **{"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(bool)": "bool"},
    **{f"tensor({kind})": kind for kind in ("uint8", "int8", "uint16", "int16", "int32", "int64", "uint32", "uint64")},
}
USUAL_SIDE, USUAL_CHANNELS = 224, 3
"""What an input of free size is tried with."""


def require_bounded(artifact: Artifact) -> None:
    """Try a model file's graph on one image, unless it was tried here or is of the package.

    Raises:
        ArtifactError: If it takes more than the limits, or ends the process that runs it.
    """
    if artifact.engine is not None or artifact.path.resolve().parent == SHIPPED:
        return
    mark = _mark(artifact)
    if mark is not None and mark.exists():
        return
    size = artifact.card.preprocessing.size
    if why := _tried(artifact.data, len(artifact.data), ["bytes", str(size)]):
        raise ArtifactError(f"{artifact.path} {why}", fix=_MORE)
    remember(artifact)


def require_bounded_file(file: Path, file_bytes: int) -> None:
    """Try the graph of a file from elsewhere, which may keep its weights in others.

    Args:
        file: The ONNX file.
        file_bytes: Its size with its weights.

    Raises:
        InputError: If it takes more than the limits, or ends the process that runs it.
    """
    if why := _tried(b"", file_bytes, [str(file.absolute()), "0"]):
        raise InputError(f"{file} {why}", fix=_MORE)


_MORE = "if you trust it, allow more by QDEPLOY_TRIAL_GIB and QDEPLOY_TRIAL_SECONDS"


def remember(artifact: Artifact) -> None:
    """Note that a model file needs no trial here: it had one, or was made here."""
    mark = _mark(artifact)
    if mark is not None:
        with suppress(OSError):  # without a cache it is tried at every start
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()


def _mark(artifact: Artifact) -> Path | None:
    from qdeploy.data.places import cache_folder

    digest = hashlib.blake2b(_KEY_VERSION, digest_size=20)
    for start, end in graph_parts(artifact.data):
        digest.update(memoryview(artifact.data)[start:end])
    digest.update(str(artifact.card.preprocessing.size).encode())
    with suppress(RuntimeError):  # without a home there is no cache
        return cache_folder() / "tried" / digest.hexdigest()
    return None


def _number(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise InputError(f"{name} must be a number above 0", found=repr(text))
    return value


def _tried(data: bytes, file_bytes: int, arguments: list[str]) -> str:
    """Run a graph in a process of its own; return what speaks against it, or nothing."""
    import signal
    import subprocess  # costs milliseconds, which a model file that was tried does not have

    memory = int(_number("QDEPLOY_TRIAL_GIB", MEMORY_BYTES / 2**30) * 2**30) + FILE_COPIES * file_bytes
    seconds = _number("QDEPLOY_TRIAL_SECONDS", CPU_S) + CPU_S_OF_A_MIB * file_bytes / 2**20
    code = "from qdeploy.runtime.trial import main; main(*sys.argv[1:])"
    command = [*python_command(code), *arguments, str(memory), str(seconds)]
    too_long = f"takes more than {seconds:.0f} s for one image"
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=PATIENCE * seconds)
    except subprocess.TimeoutExpired:
        return too_long
    except OSError as error:
        raise InputError(f"a process to try a graph in cannot be started: {error}") from error
    if done.returncode in (-getattr(signal, "SIGXCPU", 0), -getattr(signal, "SIGKILL", 9)):
        return too_long
    if done.returncode < 0:
        return f"ends the process that runs it ({signal.Signals(-done.returncode).name}), or takes too much memory"
    try:
        said: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise InputError(f"a process to try a graph in cannot be started: {last or done.returncode}") from error
    return f"takes more than {memory / 2**30:.1f} GiB of memory for one image" if said["no_memory"] else ""


def main(source: str, size: str, memory: str, seconds: str) -> None:
    """Open a graph and run it once, within limits; print whether the memory was too little. The child's part.

    Args:
        source: The file, or ``bytes`` for a model file on standard input.
        size: Side of the images of a model file.
        memory: Bytes beside those that the libraries take.
        seconds: CPU time beside that of the start.
    """
    from qdeploy.runtime.engines.onnxruntime_binding import open_binding

    data = sys.stdin.buffer.read() if source == "bytes" else b""
    _limit(int(memory), float(seconds))
    text = ""
    try:
        session = open_binding(data or source, threads=1, optimize="all" if data else "basic")
        session.run(None, _inputs(session, int(size)))
    except MemoryError:
        text = _NO_MEMORY[0]
    except Exception as error:  # whatever else is wrong with it, those say who use it
        text = str(error)
    print(json.dumps({"no_memory": any(word in text for word in _NO_MEMORY)}))


def _limit(memory: int, seconds: float) -> None:
    try:
        import resource
    except ImportError:  # Windows: the time by the clock is limited
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _inputs(session: ort.InferenceSession, size: int) -> dict[str, Any]:
    """Return zeros for every input: of its shape, with usual numbers where that is free."""
    import numpy as np

    values = {}
    for given in session.get_inputs():
        shape = [n if isinstance(n, int) and n > 0 else 0 for n in given.shape]
        usual = [1, *[size or USUAL_SIDE] * (len(shape) - 1)]
        if len(shape) == 4 and not shape[1] and shape[3] != USUAL_CHANNELS:
            usual[1] = USUAL_CHANNELS
        elif len(shape) == 4 and not shape[3]:
            usual[3] = USUAL_CHANNELS
        whole = [n or u for n, u in zip(shape, usual, strict=True)]
        values[given.name] = np.zeros(whole, _TYPES[given.type])
    return values
