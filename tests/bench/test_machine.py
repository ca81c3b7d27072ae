"""The machine's card and the verdict on a measurement, from counters as Linux writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdeploy.bench.config import BenchConfig
from qdeploy.bench.energy import counters, used_joules
from qdeploy.bench.validity import judge
from qdeploy.bench.watch import Watch, limits, read

STEADY = {"model": [1.0] * 900}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_counters_of_cgroup_v2_are_read(tmp_path: Path) -> None:
    write(tmp_path / "proc/stat", "cpu  100 20 30 4000 50 6 7 80 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    write(tmp_path / "proc/self/cgroup", "0::/job\n")
    write(tmp_path / "sys/fs/cgroup/job/cpu.max", "150000 100000\n")
    write(tmp_path / "sys/fs/cgroup/job/cpu.stat", "usage_usec 5\nnr_throttled 12\n")
    write(tmp_path / "proc/cpuinfo", "cpu MHz\t\t: 2596.150\ncpu MHz\t\t: 3100.2\n")
    found = read(tmp_path)
    assert found.busy_s == pytest.approx(1.63)
    assert found.stolen_s == pytest.approx(0.80)
    assert found.throttled == 12
    card = limits(tmp_path)
    assert card["quota_cores"] == 1.5
    assert card["mhz"] == 3100


def test_the_counters_of_cgroup_v1_are_read_and_missing_ones_are_missing(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "4:memory:/m\n3:cpu,cpuacct:/job\n0::/\n")
    write(tmp_path / "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "50000\n")
    write(tmp_path / "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n")
    write(tmp_path / "sys/fs/cgroup/cpu,cpuacct/job/cpu.stat", "nr_periods 9\nnr_throttled 3\n")
    assert limits(tmp_path)["quota_cores"] == 0.5
    assert read(tmp_path).throttled == 3
    nothing = read(tmp_path / "none")
    assert (nothing.busy_s, nothing.stolen_s, nothing.throttled) == (None, None, None)


def test_energy_is_what_the_counters_say_or_nothing(tmp_path: Path) -> None:
    zone = tmp_path / "intel-rapl:0"
    write(zone / "energy_uj", "9000000")
    write(zone / "max_energy_range_uj", "10000000")
    write(tmp_path / "intel-rapl:0:0" / "energy_uj", "777")  # a part of the package: not counted twice
    before = {k: v for k, v in counters(tmp_path).items() if k.startswith("cpu")}
    assert before == {"cpu0": 9.0}
    write(zone / "energy_uj", "1500000")
    assert used_joules(before, counters(tmp_path), tmp_path) == pytest.approx({"cpu0": 2.5})
    assert Watch(wall_s=60.0).to_dict()["energy"] == "not available"


def test_a_quiet_minute_is_valid() -> None:
    watch = Watch(wall_s=61.0, own_cpu_s=60.5, busy_s=62.0, stolen_s=0.1, throttled=0)
    assert judge(BenchConfig(seconds=61), watch, STEADY).words() == "valid"
    unknown = Watch(wall_s=61.0, own_cpu_s=60.5, busy_s=None, stolen_s=None, throttled=None)
    assert judge(BenchConfig(seconds=61), unknown, STEADY).valid


@pytest.mark.parametrize(
    ("watch", "samples", "config", "reason"),
    [
        (Watch(wall_s=30, own_cpu_s=30), STEADY, BenchConfig(), "measured for 30 s, 60 needed"),
        (Watch(wall_s=61, own_cpu_s=60.5), STEADY, BenchConfig(quick=True), "a quick look"),
        (Watch(wall_s=61, own_cpu_s=60.5), {"model": [1.0] * 300}, BenchConfig(), "300 queries, 662 needed"),
        (Watch(wall_s=61, own_cpu_s=60.5, stolen_s=9), STEADY, BenchConfig(), "other guests"),
        (Watch(wall_s=61, own_cpu_s=60.5, busy_s=80), STEADY, BenchConfig(), "other processes used 0.3"),
        (Watch(wall_s=61, own_cpu_s=60.5, throttled=4), STEADY, BenchConfig(), "quota stopped the process 4 times"),
        (Watch(wall_s=61, own_cpu_s=40), STEADY, BenchConfig(), "had the CPU for 66 %"),
        (Watch(wall_s=61, own_cpu_s=120), STEADY, BenchConfig(), "used 2.0 cores instead of 1"),
        (Watch(wall_s=61, own_cpu_s=60.5), {"model": [1.0] * 500 + [1.1] * 500}, BenchConfig(), "drifted by +10.0 %"),
    ],
)
def test_what_spoils_a_measurement_is_named(
    watch: Watch, samples: dict[str, list[float]], config: BenchConfig, reason: str
) -> None:
    found = judge(config, watch, samples)
    assert not found.valid
    assert len(found.reasons) == 1
    assert reason in found.reasons[0]
