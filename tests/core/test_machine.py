from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qdeploy.core import machine
from qdeploy.core.machine import cpu_quota, cpu_words, usable_cores


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = "proc/self/cgroup", "0::/pod/box\n"
V1 = "proc/self/cgroup", "5:memory:/pod/box\n4:cpu,cpuacct:/pod/box\n0::/\n"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        (dict([V2]), None),
        (dict([V2]) | {"sys/fs/cgroup/pod/box/cpu.max": "max 100000\n"}, None),
        (dict([V2]) | {"sys/fs/cgroup/pod/box/cpu.max": "150000 100000\n"}, 1.5),
        (
            dict([V2])
            | {"sys/fs/cgroup/pod/box/cpu.max": "400000 100000\n", "sys/fs/cgroup/pod/cpu.max": "50000 20000\n"},
            2.5,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        ({"proc/self/cgroup": "0::/../other\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),
        (
            dict([V1])
            | {
                "sys/fs/cgroup/cpu,cpuacct/pod/box/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/pod/box/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_quota_us": "350000\n",
                "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_period_us": "100000\n",
            },
            3.5,
        ),
        (
            dict([V1])
            | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
            2.0,
        ),
    ],
    ids=["no cgroups", "v2 unset", "v2 max", "v2", "v2 nested", "v2 root", "v2 outside", "v1 nested", "v1 container"],
)
def test_the_narrowest_quota_of_all_groups_counts(files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    assert cpu_quota(written(tmp_path, files)) == quota


@pytest.mark.parametrize(("quota", "cores"), [(None, 4), (0.3, 1), (1.9, 1), (2.0, 2), (16.0, 4)])
def test_cores_are_the_affinity_limited_by_whole_cores_of_quota(
    quota: float | None, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5, 6})
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    assert usable_cores() == cores


def test_a_pinned_process_has_one_core() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from qdeploy.core.machine import usable_cores; print(usable_cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(("cores", "words"), [(1, "EPYC, 1 core (avx, fma)"), (2, "EPYC, 2 cores (avx, fma)")])
def test_a_processor_in_words(cores: int, words: str) -> None:
    assert cpu_words({"cpu": "EPYC", "cores": cores, "flags": ["avx", "fma"]}) == words
