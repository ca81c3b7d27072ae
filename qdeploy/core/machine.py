"""What this machine is: for benchmarks, lineage and the choice of defaults."""

from __future__ import annotations

import os
import platform
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

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
"""With one of them products of 8 bits are summed in 32."""


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Give the flags of the first CPU as Linux names them; empty on other systems."""
    for line in _read("/proc/cpuinfo").splitlines():
        if line.lower().startswith(("flags", "features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def cpu_name() -> str:
    """Give the CPU's model name."""
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def native_target() -> str:
    """Give the INT8 target that this machine's CPU runs best: x86, x86-avx2 or arm."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "arm"
    return "x86" if cpu_flags() & FAST_INT8_FLAGS else "x86-avx2"


def usable_cores() -> int:
    """Give the number of cores this process may use: its affinity, limited by the cgroup's CPU quota."""
    cores, quota = affine_cores(), cpu_quota()
    return cores if quota is None else min(cores, max(1, int(quota)))


def affine_cores() -> int:
    """Give the number of cores that this process may be scheduled on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota() -> float | None:
    """Give the cgroup's limit in cores, or None."""
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def memory_bytes() -> tuple[int, int] | None:
    """Give the memory that this process may use in all, and what of it is free; None where Linux does not tell."""
    fields = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines() if ":" in line)
    if not {"MemTotal", "MemAvailable"} <= set(fields):
        return None
    total, free = (int(fields[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    limit, used = (_read(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdigit() and used.isdigit() and int(limit) < total:
        total, free = int(limit), min(free, int(limit) - int(used))
    return total, free


def peak_memory_bytes() -> int:
    """Give this process's largest resident size so far.

    Read from VmHWM: ``ru_maxrss`` is inherited from the parent across fork and exec.
    """
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource  # not on Windows, where this function has no answer

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def versions(*packages: str) -> dict[str, str]:
    """Give the versions of Python and of those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


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


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
