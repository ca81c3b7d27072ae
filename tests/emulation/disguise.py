"""Run programs as on an older x86 CPU: ONNX Runtime, OpenVINO and qdeploy then see fewer flags than the CPU has.

``cpu_disguise.c`` explains how. This module compiles it and, where CPUID faulting is not offered, copies the Python
packages in question with their CPUID instructions rewritten; an ``import`` and ``importlib.util.find_spec`` find the
copy first, by PYTHONPATH. numpy and torch keep seeing the real CPU then.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from filelock import FileLock

SOURCE = Path(__file__).with_name("cpu_disguise.c")

_NEEDED = {
    "nehalem": ("sse4_2",),
    "sandybridge": ("avx",),
    "haswell": ("avx2", "fma"),
    "skylake-x": ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
    "alderlake": ("avx2", "fma", "avx_vnni"),
    "icelake": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"),
}
"""Flags in /proc/cpuinfo without which a CPU cannot be played: flags can be hidden, not added."""
CPUS = tuple(_NEEDED)
"""The names of the CPUs; Haswell and Skylake-X have no VNNI, and their 8-bit kernels saturate."""

_LIBRARIES = {
    "onnxruntime": ("capi/libonnxruntime.so*", "capi/onnxruntime_pybind11_state*.so"),
    "openvino": ("libs/libopenvino.so*", "libs/libopenvino_intel_cpu_plugin.so"),
}
"""The libraries of a package that choose kernels by CPUID. The Python binding of ONNX Runtime is a second, complete
copy of it."""
_UNUSED = shutil.ignore_patterns("__pycache__", "*_gpu_plugin.so", "*_npu_plugin.so")

_SYS_ARCH_PRCTL, _ARCH_SET_CPUID = 158, 0x1012
_CPUID, _INT_A2 = b"\x0f\xa2", b"\xcd\xa2"
_CPUID_LINE = re.compile(rb"\s*([0-9a-f]+):\tcpuid\s*")
_LOADED = 1  # PT_LOAD


def unavailable(cpu: str | None = None) -> str | None:
    """Return why this computer cannot be disguised, or None if it can.

    Args:
        cpu: One of ``CPUS``; by default the reason for which any of them cannot be played.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "CPUs are disguised on Linux on x86-64 only"
    if _compiler() is None:
        return "a C compiler is needed to disguise the CPU"
    if not _faulting() and shutil.which("objdump") is None:
        return "objdump is needed to disguise the CPU, which offers no CPUID faulting"
    needed = {flag for name in ([cpu] if cpu else CPUS) for flag in _NEEDED[name]}
    missing = sorted(needed - _host_flags())
    return f"this CPU has no {', '.join(missing)}, which {cpu or 'a disguise'} needs" if missing else None


def disguise(cpu: str, folder: Path, packages: Sequence[str] = ("onnxruntime",)) -> dict[str, str]:
    """Return the environment variables for a process that is to run as on a CPU.

    Disassembling takes some seconds (onnxruntime 8, openvino 9) in the first call for a folder; later ones reuse what
    is there, and processes that call it at the same time wait for each other.

    Args:
        cpu: One of ``CPUS``.
        folder: Where the library and the copies are kept; made if missing.
        packages: The Python packages to disguise, of ``onnxruntime`` and ``openvino``. Where CPUID faulting is offered,
            whole processes are disguised, and this does not matter.

    Raises:
        ValueError: If there is no such CPU.
        subprocess.CalledProcessError: If compiling or disassembling fails.
    """
    if cpu not in CPUS:
        raise ValueError(f"there is no CPU '{cpu}'; known: {', '.join(CPUS)}")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "disguise.lock"):
        library = _built_library(folder)
        copies = [] if _faulting() else [_rewritten_copy(package, folder) for package in packages]
    variables = {"QDEPLOY_TEST_CPU": cpu, "LD_PRELOAD": _first(str(library), "LD_PRELOAD")}
    if copies:
        variables["PYTHONPATH"] = _first(os.pathsep.join(map(str, copies)), "PYTHONPATH")
    return variables


def disguise_program(program: Path) -> None:
    """Make a compiled program ready for a disguise: it executes CPUID itself, as the C kit's programs do.

    Where CPUID faulting is not offered its file is changed, and it runs with the variables of ``disguise`` only.
    """
    if not _faulting():
        _rewrite(program)


def _first(value: str, variable: str) -> str:
    """Return a list for a variable: a value, then what the variable holds already."""
    return os.pathsep.join(part for part in (value, os.environ.get(variable)) if part)


def _built_library(folder: Path) -> Path:
    """Compile the library unless it is there."""
    library = folder / f"cpu_disguise-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}.so"
    if not library.exists():
        unfinished = library.with_suffix(".unfinished")
        options = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC"]
        subprocess.run([str(_compiler()), *options, "-o", unfinished, SOURCE], check=True)
        unfinished.rename(library)
    return library


def _rewritten_copy(package: str, folder: Path) -> Path:
    """Return a folder that holds a copy of a package with rewritten libraries; make it unless it is there."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named '{package}'", name=package)
    original = Path(spec.submodule_search_locations[0])
    states = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in _libraries(package, original)]
    copy = folder / f"{package}-{hashlib.sha256(repr(states).encode()).hexdigest()[:12]}"
    if not copy.exists():
        unfinished = copy.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(original, unfinished / package, ignore=_UNUSED)
        for library in _libraries(package, unfinished / package):
            _rewrite(library)
        unfinished.rename(copy)
    return copy


def _libraries(package: str, folder: Path) -> list[Path]:
    return sorted(file for pattern in _LIBRARIES[package] for file in folder.glob(pattern))


def _rewrite(file: Path) -> None:
    """Replace the CPUID instructions of a library or program by others that trap."""
    data = bytearray(file.read_bytes())
    for place in _cpuid_places(file, data):
        if data[place : place + 2] != _CPUID:
            raise ValueError(f"{file} has no CPUID instruction at {place:#x}, where objdump finds one")
        data[place : place + 2] = _INT_A2
    file.write_bytes(data)


def _cpuid_places(file: Path, data: bytes | bytearray) -> Iterator[int]:
    """Yield where in a file its CPUID instructions are.

    The same two bytes also stand inside of other instructions, so the code has to be disassembled.
    """
    segments = list(_segments(data))
    command = ["objdump", "--disassemble", "--no-show-raw-insn", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if b"cpuid" in line and (found := _CPUID_LINE.fullmatch(line)):
                address = int(found[1], 16)
                yield next(address - start + at for at, start, size in segments if start <= address < start + size)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)


def _segments(data: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """Yield offset, address and size of what is loaded of a 64-bit ELF file."""
    (headers_at,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for i in range(count):
        kind, _, at, address, _, in_file = struct.unpack_from("<IIQQQQ", data, headers_at + i * size)
        if kind == _LOADED:
            yield at, address, in_file


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


@cache
def _faulting() -> bool:
    """Return whether CPUID faulting is offered: switching it off, as it is anyway, succeeds."""
    return ctypes.CDLL(None).syscall(_SYS_ARCH_PRCTL, _ARCH_SET_CPUID, 1) == 0


def _host_flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((set(line.split()[2:]) for line in lines if line.startswith("flags")), set())
