"""Crashes: SIGKILL at every file operation and at random moments, failing operations, full disks, few open files.

After each, three things are asked: is anything there that is not whole and that a later command takes; does the same
command, or its resumption, go on to the right result (a training, bit for bit); is anything left over.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from qdeploy.cli.main import run
from tests.forked import Ended, command, forked
from tests.torture.operations import Operation, Plan, out_of_order, read_trace, watch
from tests.torture.report import Report
from tests.torture.scenarios import Scenario, World, age, build, left_over

ERRORS = (errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EROFS, errno.EACCES, errno.EDQUOT)


def traced(world: World, scenario: Scenario) -> tuple[list[Operation], float, list[str]]:
    """Run a command to its end; gives its file operations, its seconds, and what is wrong without any trouble."""
    world.begin(scenario.needs)
    trace = world.root / "trace"
    trace.unlink(missing_ok=True)
    begin = time.monotonic()
    ended = forked(partial(_watched, world, scenario.words, Plan(), trace), world.case)
    seconds = time.monotonic() - begin
    operations = read_trace(trace) if trace.exists() else []
    faults = [ended.fault] if ended.fault else []
    return operations, seconds, [*faults, *out_of_order(operations), *scenario.right(world), *left_over(world)]


def killed_at(world: World, scenario: Scenario, at: int) -> list[str]:
    """Kill a command before its n-th file operation."""
    return _after(world, scenario, forked(partial(_watched, world, scenario.words, Plan(at)), world.case))


def killed_after(world: World, scenario: Scenario, seconds: float) -> list[str]:
    """Kill a command after some time."""
    work = partial(run, list(scenario.words))
    return _after(world, scenario, forked(work, world.case, kill_after_s=seconds))


def failing_at(world: World, scenario: Scenario, at: int, error: int) -> list[str]:
    """Let a command's n-th file operation fail."""
    ended = forked(partial(_watched, world, scenario.words, Plan(at, "fail", error)), world.case)
    return [*_told(ended), *_after(world, scenario, ended)]


def on_a_full_disk(world: World, scenario: Scenario, free: int) -> list[str]:
    """Run a command on a disk with so many free bytes; then make room, and run it again."""
    world.begin(())
    files = [f for name in scenario.needs for f in (world.whole / name, *(world.whole / name).rglob("*"))]
    used = sum(-(-f.stat().st_size // 4096) * 4096 for f in files) + (64 << 10)
    with disk(world.case, used + free):
        for name in scenario.needs:
            _copy(world.whole / name, world.case / name)
        ended = command(world.case, *scenario.words)
        faults = [*_told(ended), *scenario.whole(world)]
        if ended.code == 0:
            return faults
        _remount(world.case, "size=200m")
        return [*faults, *_goes_on(world, scenario)]


def on_a_read_only_disk(world: World, scenario: Scenario) -> list[str]:
    """Run a command where nothing can be written."""
    world.begin(())
    with disk(world.case, 200 << 20):
        for name in scenario.needs:
            _copy(world.whole / name, world.case / name)
        _remount(world.case, "ro")
        ended = command(world.case, *scenario.words)
        _remount(world.case, "rw")
        return [*_told(ended), *scenario.whole(world), *_goes_on(world, scenario)]


def with_few_files(world: World, scenario: Scenario, count: int) -> list[str]:
    """Run a command that may have only so many more files open than it has at its beginning."""

    def work() -> int:
        limit = len(os.listdir("/proc/self/fd")) + count
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        return run(list(scenario.words))

    ended = forked(work, world.case)
    return [*_told(ended), *_after(world, scenario, ended)]


def _watched(world: World, words: tuple[str, ...], plan: Plan, trace: Path | None = None) -> int:
    watch(world.case, plan, trace)
    return run(list(words))


def _told(ended: Ended) -> list[str]:
    """A command to which something happens does without what it tried, or says in one line that it cannot."""
    return [ended.fault] if ended.fault else []


def _after(world: World, scenario: Scenario, ended: Ended) -> list[str]:
    faults = [ended.fault] if ended.fault and ended.code != -9 else []
    return [*faults, *scenario.whole(world), *_goes_on(world, scenario)]


def _goes_on(world: World, scenario: Scenario) -> list[str]:
    age(world.case)
    words = scenario.next(world)
    faults = []
    if words is not None:
        again = command(world.case, *words)
        if again.code:
            return [f"`{' '.join(words)}` does not go on: exit code {again.code} {again.err.strip()[-300:]}"]
        faults = left_over(world)
    return [*faults, *scenario.right(world)]


@contextmanager
def disk(place: Path, size: int) -> Iterator[None]:
    """Mount a disk of its own, in memory, of so many bytes."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "torture", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def can_mount(world: World) -> bool:
    """Return whether this process may mount disks."""
    place = world.root / "mount"
    place.mkdir(exist_ok=True)
    try:
        with disk(place, 1 << 20):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def _remount(place: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(place)], check=True)


def _copy(source: Path, target: Path) -> None:
    (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)


Case = tuple[str, str, Callable[[], list[str]]]


def cases(world: World, scenario: Scenario, operations: int, seconds: float, dice: random.Random) -> Iterator[Case]:
    """Yield every case of a scenario, in random order, and then moments at random without an end."""

    def fresh(work: Callable[[], list[str]]) -> Callable[[], list[str]]:
        def begin() -> list[str]:
            world.begin(scenario.needs)
            return work()

        return begin

    name = scenario.name
    planned: list[Case] = [
        ("kill at an operation", name, fresh(partial(killed_at, world, scenario, at))) for at in range(operations)
    ]
    planned += [
        (f"{errno.errorcode[error]} at an operation", name, fresh(partial(failing_at, world, scenario, at, error)))
        for at in range(operations)
        for error in dice.sample(ERRORS, 1)
    ]
    planned += [("few open files", name, fresh(partial(with_few_files, world, scenario, n))) for n in (0, 1, 3, 8)]
    if can_mount(world):
        sizes = [dice.randrange(1 << 12, 3 << 20) for _ in range(4)]
        planned += [("full disk", name, partial(on_a_full_disk, world, scenario, size)) for size in sizes]
        planned.append(("read-only disk", name, partial(on_a_read_only_disk, world, scenario)))
    moment = "kill at a moment"
    planned += [
        (moment, name, fresh(partial(killed_after, world, scenario, dice.uniform(0, seconds))))
        for _ in range(max(4, operations))
    ]
    dice.shuffle(planned)
    yield from planned
    while True:
        yield moment, name, fresh(partial(killed_after, world, scenario, dice.uniform(0, seconds)))


def torture(world: World, chosen: Sequence[Scenario], seed: int, minutes: float) -> Report:
    """Try cases of some scenarios, each for its share of the time."""
    report, dice = Report(), random.Random(seed)
    build(world, chosen)
    for i, scenario in enumerate(chosen):
        begin = time.monotonic()
        share = (minutes * 60) / len(chosen)
        operations, seconds, faults = traced(world, scenario)
        report.add("without trouble", scenario.name, faults)
        for kind, name, work in cases(world, scenario, len(operations), seconds, dice):
            if time.monotonic() - begin > share:
                break
            report.add(kind, name, work())
        print(f"{i + 1} of {len(chosen)}: {scenario.name}, {json.dumps(report.sums)}", flush=True)
    return report
