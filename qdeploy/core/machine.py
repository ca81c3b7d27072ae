"""CPU, cores, memory and package versions of this machine: for benchmarks, lineage and the choice of defaults."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

from qdeploy.core.cpuid import x86_flags

SPEED_FLAGS = (
    "sse4_1",
    "avx",
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
)
"""The CPU flags that decide which kernels run."""
FAST_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""With one of them products of 8 bits are summed in 32 bits; x86 without them sums pairs of products in 16."""

SEVEN_BIT_TARGET = "x86-avx2"
MOST_THREADS = 1024


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Return the flags of the first CPU, as Linux names them: at least those of ``SPEED_FLAGS`` that it has.

    On x86-64 CPUID is asked, as ONNX Runtime does; elsewhere Linux. Empty where neither can be.
    """
    asked = x86_flags()
    if asked is not None:
        return asked
    for line in _read("/proc/cpuinfo").splitlines():
        if line.lower().startswith(("flags", "features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def cpu_name() -> str:
    """Return the CPU's model name."""
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def native_target() -> str:
    """Return the INT8 target that this machine's CPU runs best: x86, x86-avx2 or arm."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "arm"
    return "x86" if cpu_flags() & FAST_INT8_FLAGS else SEVEN_BIT_TARGET


def saturates(target: str) -> bool:
    """Tell whether this machine's CPU gets products of full 8-bit weights wrong unless they are computed in 16 bits.

    Args:
        target: What the file was made for, as its card says; floats and weights of 7 bits cannot overflow.
    """
    return native_target() == SEVEN_BIT_TARGET and target not in (SEVEN_BIT_TARGET, "float")


def usable_cores() -> int:
    """Return the number of cores this process may use: its affinity, limited by the CPU quota of its cgroups."""
    cores, quota = affine_cores(), cpu_quota()
    return cores if quota is None else min(cores, max(1, int(quota)))


def wanted_threads() -> int | None:
    """Return the number of threads that ``OMP_NUM_THREADS`` asks for; None where it is not set or no such number."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list is for nested regions
    return int(first) if first.isdigit() and 1 <= int(first) <= MOST_THREADS else None


_given: ContextVar[int | None] = ContextVar("threads", default=None)


@contextmanager
def computing_with(threads: int | None) -> Iterator[None]:
    """Let ``compute_threads`` give this number within it, unless it is None."""
    token = _given.set(threads or _given.get())
    try:
        yield
    finally:
        _given.reset(token)


def compute_threads() -> int:
    """Return with how many threads to compute: what was asked for, here or by ``OMP_NUM_THREADS``, else all cores."""
    return _given.get() or wanted_threads() or usable_cores()


def affine_cores() -> int:
    """Return the number of cores that this process may be scheduled on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU time per second that this process's control groups allow, in cores, or None without a limit.

    The least of its own group and of all groups around it counts, of cgroup v1 and v2. Use a fraction rounded down:
    a thread too many is stopped for the rest of each period, which shows as latencies of tens of milliseconds.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    found = []
    mounts = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, entry = line.partition(":")
        controllers, _, group = entry.partition(":")
        if not controllers:
            found += [_quota_v2(g) for m in (mounts, mounts / "unified") for g in _groups(m, group)]
        elif "cpu" in controllers.split(","):
            found += [_quota_v1(g) for m in (mounts / controllers, mounts / "cpu") for g in _groups(m, group)]
    return min((q for q in found if q is not None), default=None)


def _groups(mount: Path, group: str) -> list[Path]:
    """Return a group's folder and those around it; in a container the group's own may be the mount itself."""
    inner = mount / group.lstrip("/")
    return [inner, *(p for p in inner.parents if p == mount or mount in p.parents)]


def _quota_v2(group: Path) -> float | None:
    quota, _, period = _read(group / "cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _quota_v1(group: Path) -> float | None:
    quota, period = (_read(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None  # a quota of -1 is none


def memory_bytes() -> tuple[int, int] | None:
    """Return the memory that this process may use in all, and what of it is free; None where Linux does not tell."""
    fields = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines() if ":" in line)
    if not {"MemTotal", "MemAvailable"} <= set(fields):
        return None
    total, free = (int(fields[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    limit, used = (_read(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdigit() and used.isdigit() and int(limit) < total:
        total, free = int(limit), min(free, int(limit) - int(used))
    return total, free


def peak_memory_bytes() -> int:
    """Return this process's largest resident size so far.

    Read from VmHWM: ``ru_maxrss`` is inherited from the parent across fork and exec.
    """
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource  # not on Windows, where this function has no answer

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def resident_bytes() -> int:
    """Return this process's resident size now; its largest where the system does not tell."""
    pages = _read("/proc/self/statm").split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if pages else peak_memory_bytes()


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of those of the packages that are installed."""
    from importlib import metadata  # costs 30 ms, which every other command would pay

    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_words(found: Mapping[str, Any]) -> str:
    """Return the processor of an ``environment`` in words: its name, usable cores and instructions."""
    cores = found["cores"]
    return f"{found['cpu']}, {cores} core{'s' * (cores != 1)} ({', '.join(found['flags'])})"


def environment(*packages: str) -> dict[str, Any]:
    """Describe the machine for a report: CPU, flags, cores, load, system and versions."""
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {
        "cpu": cpu_name(),
        "flags": [f for f in SPEED_FLAGS if f in cpu_flags()],
        "cores": usable_cores(),
        "load_1min": load,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(*packages),
    }


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
