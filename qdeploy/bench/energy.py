"""Energy counters of the machine, where it exposes them. What is not measured is not available: never an estimate."""

from __future__ import annotations

import ctypes
import re
from functools import lru_cache
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"


def counters(powercap: Path = POWERCAP) -> dict[str, float]:
    """Return every readable energy counter in joules: ``cpu<package>`` (RAPL) and ``gpu<number>`` (NVML)."""
    return {**_rapl(powercap), **_nvml()}


def used_joules(before: dict[str, float], after: dict[str, float], powercap: Path = POWERCAP) -> dict[str, float]:
    """Return what was used between two readings; a RAPL counter may have started again at zero."""
    used = {}
    for name in before.keys() & after.keys():
        spent = after[name] - before[name]
        used[name] = spent if spent >= 0 else spent + _rapl_range(powercap, name)
    return dict(sorted(used.items()))


def _rapl(powercap: Path) -> dict[str, float]:
    """Read the packages; their sub-domains are part of them."""
    found = {}
    for zone in sorted(powercap.glob("intel-rapl:*")):
        match = re.fullmatch(r"intel-rapl:(\d+)", zone.name)
        if match is None:
            continue
        value = _number(zone / "energy_uj")
        if value is not None:
            found[f"cpu{match[1]}"] = value / 1e6
    return found


def _rapl_range(powercap: Path, name: str) -> float:
    return (_number(powercap / f"intel-rapl:{name.removeprefix('cpu')}" / "max_energy_range_uj") or 0.0) / 1e6


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):  # root only on many systems since 2020
        return None


def _nvml() -> dict[str, float]:
    library = _nvml_library()
    if library is None:
        return {}
    count = ctypes.c_uint()
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return {}
    found = {}
    for number in range(count.value):
        device, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
        if (
            library.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(device)) == 0
            and library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)) == 0
        ):
            found[f"gpu{number}"] = millijoules.value / 1e3
    return found


@lru_cache(maxsize=1)
def _nvml_library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(NVML)
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None
