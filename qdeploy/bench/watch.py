"""Readings of what the machine did while models were timed: load of others, time stolen, throttling, energy."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from qdeploy.bench.energy import counters, used_joules
from qdeploy.core.machine import cpu_quota

ROOT = Path("/")
"""Where ``proc`` and ``sys`` are."""
GOVERNOR = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The machine's counters at one moment."""

    wall_s: float
    own_cpu_s: float
    """CPU seconds of this process, all threads."""
    busy_s: float | None
    """CPU seconds of all processes on all cores; None where the system does not tell."""
    stolen_s: float | None
    """CPU seconds that a hypervisor gave to other virtual machines; None where the system does not tell."""
    throttled: int | None
    """Times that the cgroup's quota stopped this process; None where the system does not tell."""
    joules: dict[str, float]


@dataclass
class Watch:
    """Sums up what happens inside its ``with`` blocks."""

    wall_s: float = 0.0
    own_cpu_s: float = 0.0
    busy_s: float | None = 0.0
    stolen_s: float | None = 0.0
    throttled: int | None = 0
    joules: dict[str, float] = field(default_factory=dict)
    _begin: Reading | None = None

    def __enter__(self) -> Watch:
        self._begin = read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end, begin = read(), self._begin
        assert begin is not None
        self.wall_s += end.wall_s - begin.wall_s
        self.own_cpu_s += end.own_cpu_s - begin.own_cpu_s
        self.busy_s = _sum(self.busy_s, begin.busy_s, end.busy_s)
        self.stolen_s = _sum(self.stolen_s, begin.stolen_s, end.stolen_s)
        throttled = _sum(self.throttled, begin.throttled, end.throttled)
        self.throttled = None if throttled is None else int(throttled)
        for name, spent in used_joules(begin.joules, end.joules).items():
            self.joules[name] = self.joules.get(name, 0.0) + spent

    @property
    def others_cores(self) -> float | None:
        """Cores' worth of work of other processes."""
        if self.busy_s is None or not self.wall_s:
            return None
        return max(0.0, (self.busy_s - self.own_cpu_s) / self.wall_s)

    @property
    def own_cores(self) -> float | None:
        """CPU time of this process divided by the time that passed."""
        return self.own_cpu_s / self.wall_s if self.wall_s else None

    @property
    def stolen_percent(self) -> float | None:
        """Share of the cores' time that was stolen."""
        if self.stolen_s is None or not self.wall_s:
            return None
        return 100 * self.stolen_s / (self.wall_s * (os.cpu_count() or 1))

    def to_dict(self) -> dict[str, Any]:
        """Return its part of the environment in the JSON document."""
        watts = {name: j / self.wall_s for name, j in self.joules.items()} if self.wall_s else {}
        return {
            "measured_s": self.wall_s,
            "own_cores": self.own_cores,
            "others_cores": self.others_cores,
            "stolen_percent": self.stolen_percent,
            "throttled": self.throttled,
            "energy": {"joules": self.joules, "watts": watts} if self.joules else "not available",
        }


def read(root: Path = ROOT) -> Reading:
    """Read the counters."""
    busy, stolen = _cpu_seconds(root)
    return Reading(
        wall_s=time.perf_counter(),
        own_cpu_s=time.process_time(),
        busy_s=busy,
        stolen_s=stolen,
        throttled=_throttled(root),
        joules=counters(),
    )


def limits(root: Path = ROOT) -> dict[str, Any]:
    """Return what holds for the whole measurement: affinity, quota, governor and frequency; None where not readable."""
    mhz = [line.partition(":")[2] for line in _text(root / "proc/cpuinfo").splitlines() if line.startswith("cpu MHz")]
    return {
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "quota_cores": cpu_quota(root),
        "governor": _text(root / GOVERNOR).strip() or None,
        "mhz": round(max(map(float, mhz))) if mhz else None,
    }


def _sum(so_far: float | None, begin: float | None, end: float | None) -> float | None:
    return None if so_far is None or begin is None or end is None else so_far + end - begin


def _cpu_seconds(root: Path) -> tuple[float | None, float | None]:
    """Return the seconds all cores were busy, and those stolen, from the first line of ``/proc/stat``."""
    fields = _text(root / "proc/stat").partition("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        return None, None
    user, nice, system, _, _, irq, soft, stolen = (int(f) / os.sysconf("SC_CLK_TCK") for f in fields[1:9])
    return user + nice + system + irq + soft, stolen


def _throttled(root: Path) -> int | None:
    """Return how often the quota stopped this process's group, of cgroup v2 or v1."""
    mounts = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        controllers, _, group = line.partition(":")[2].partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in (mounts / controllers, mounts / ("cpu" if controllers else "unified")):
            # in a container the group's own folder may be the mount itself
            for folder in (mount / group.lstrip("/"), mount):
                for entry in _text(folder / "cpu.stat").splitlines():
                    if entry.startswith("nr_throttled"):
                        return int(entry.split()[1])
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
