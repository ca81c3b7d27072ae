"""The choice of threads: on machines whose steps cost what a table says, and in a real run."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qdeploy.core.machine import compute_threads, computing_with, usable_cores, wanted_threads
from qdeploy.training import config_from_recipe, train
from qdeploy.training.batches import Batch
from qdeploy.training.learner import Learner
from qdeploy.training.progress import Silent
from qdeploy.training.recipes import TrainConfig
from qdeploy.training.threads import LEAST_STEPS, ThreadRange, Threads, fixed_threads, thread_range
from tests.conftest import MakeImages

Seconds = Callable[[int, float], float]


class Simulated:
    """A machine on which a step takes what a function of the threads and of the time says."""

    def __init__(self, seconds: Seconds, most: int, measured: bool = True) -> None:
        self.now, self.count, self.used, self.seconds = 0.0, 0, set[int](), seconds
        self.notes: list[str] = []
        allowed = ThreadRange(first=most, most=most, measured=measured)
        self.threads = Threads(allowed, self.rehearse, self.use, self.notes.append, clock=lambda: self.now)

    def use(self, count: int) -> None:
        self.count = count
        self.used.add(count)

    def rehearse(self, limit_s: float) -> None:
        self.now += min(limit_s, self.seconds(self.count, self.now) / 3) + 1e-3

    def step(self) -> float:
        took = self.seconds(self.count, self.now)
        self.now += took
        return took

    def train(self, steps: int) -> float:
        """Train and return the steps a second, measuring included."""
        begin = self.now
        self.count = self.threads.count
        for _ in range(steps):
            self.threads.before_step(10**6)
            self.threads.step_took(self.step())
        return steps / (self.now - begin)


def quiet(count: int, _: float) -> float:
    """Each thread shares the work."""
    return 0.05 + 0.4 / count


def crowded(count: int, _: float) -> float:
    """Beside a neighbour, as in the trial: 6 to 33 images/s with two threads, 96 to 147 with one."""
    return 0.5 if count == 1 else 8.0


def arrives(count: int, now: float) -> float:
    """A neighbour comes after a while."""
    return quiet(count, now) if now < 60 else crowded(count, now)


def leaves(count: int, now: float) -> float:
    """A neighbour goes after a while."""
    return crowded(count, now) if now < 60 else quiet(count, now)


@pytest.mark.parametrize(
    ("seconds", "most", "best"), [(quiet, 2, 2), (quiet, 16, 16), (crowded, 2, 1), (crowded, 9, 1)]
)
def test_the_fastest_count_is_found_at_once(seconds: Seconds, most: int, best: int) -> None:
    machine = Simulated(seconds, most)
    reached = machine.train(1000)
    assert machine.threads.count == best
    assert reached > 0.9 / seconds(best, 0)
    assert len(machine.notes) == (best != most)


def test_a_count_between_is_found() -> None:
    machine = Simulated(lambda n, _: 0.4 / min(n, 4) + 0.1 * max(0, n - 4), 16)
    machine.train(200)
    assert machine.threads.count == 4
    assert machine.notes == [machine.notes[0]]
    assert machine.notes[0].startswith(
        "training goes on with 4 CPU threads instead of 16 (seconds of a forward pass by "
    )


@pytest.mark.parametrize(("seconds", "path"), [(arrives, [2, 1]), (leaves, [1, 2])])
def test_a_change_is_noticed_and_said(seconds: Seconds, path: list[int]) -> None:
    machine = Simulated(seconds, 2)
    machine.train(100)
    found = [machine.threads.count]
    machine.train(3000)
    assert [*found, machine.threads.count] == path
    assert ("times as long as before" in machine.notes[-1]) == (seconds is arrives)
    best_s = sum(sorted(min(seconds(n, t) for n in (1, 2)) for t in (0.0, 1e9))) / 2
    assert machine.train(1000) > 0.8 / max(best_s, min(seconds(1, 1e9), seconds(2, 1e9)))


def test_one_step_that_takes_many_times_as_long_is_enough() -> None:
    machine = Simulated(arrives, 2)
    machine.train(100)
    slow = 0
    for _ in range(400):
        machine.threads.before_step(10**6)
        took = machine.step()
        machine.threads.step_took(took)
        slow += took == crowded(2, 0)
    assert slow == 1
    hiccup = Simulated(lambda n, now: 9.0 if 60 < now < 61 else quiet(n, now), 2)
    hiccup.train(400)
    assert hiccup.threads.count == 2
    assert not hiccup.notes


def test_a_small_gain_changes_nothing_so_that_runs_repeat() -> None:
    machine = Simulated(lambda n, _: 0.3 if n == 2 else 0.27, 2)
    machine.train(500)
    assert machine.threads.count == 2
    assert not machine.notes


def test_measuring_takes_a_small_share() -> None:
    machine = Simulated(crowded, 2)
    machine.train(3000)
    assert machine.now < 1.03 * 3000 * 0.5


def test_even_a_short_run_begins_with_the_fastest_count_and_fixed_ones_measure_nothing() -> None:
    machine = Simulated(crowded, 2)
    machine.threads.before_step(1)
    assert machine.threads.count == 1
    machine = Simulated(lambda n, now: quiet(n, now) if now < 10 else crowded(n, now), 2)
    for left in range(LEAST_STEPS - 1, 0, -1):
        machine.threads.before_step(left)
        machine.threads.step_took(machine.step())
    assert machine.threads.count == 2, "towards the end it is not measured again"
    fixed = Simulated(crowded, 2, measured=False)
    fixed.train(50)
    assert fixed.used == set()


def test_a_count_that_was_asked_for_is_kept_and_its_collapse_said_once() -> None:
    hiccup = lambda n, now: 9.0 if 60 < now < 78 else quiet(n, now)  # noqa: E731  # two steps in a row
    for seconds, notes in ((arrives, 1), (hiccup, 0), (quiet, 0)):
        machine = Simulated(seconds, 2)
        allowed = thread_range(TrainConfig(threads=2), device="cpu", processes=1, default=2, cores=2)
        machine.threads = Threads(allowed, machine.rehearse, machine.use, machine.notes.append)
        machine.train(400)
        assert machine.threads.count == 2
        assert not machine.used
        assert len(machine.notes) == notes
    assert not thread_range(TrainConfig(threads=2), device="cuda", processes=1, default=2, cores=2).told
    nobody = TrainConfig(deterministic=True)  # asked for the cores that it computes with
    nobody = replace(nobody, threads=fixed_threads(nobody, 2))
    assert nobody.threads == 2
    assert not thread_range(nobody, device="cpu", processes=1, default=2, cores=2).told


def test_who_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config = TrainConfig()
    assert fixed_threads(config, None) == 0
    assert fixed_threads(TrainConfig(deterministic=True), None) == usable_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert (wanted_threads(), compute_threads(), fixed_threads(config, None)) == (3, 3, 3)
    assert fixed_threads(config, 2) == 0  # whoever gives a share has read the variable
    assert fixed_threads(TrainConfig(threads=5), None) == 5
    with computing_with(7), computing_with(None):
        assert compute_threads() == 7
    for text in ("", "0", "many", "-2", "99999"):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert wanted_threads() is None
        assert compute_threads() == usable_cores()

    def measured(given: TrainConfig = config, device: str = "cpu", processes: int = 1, cores: int = 4) -> bool:
        return thread_range(given, device=device, processes=processes, default=4, cores=cores).measured

    assert measured()
    assert not measured(device="cuda")
    assert not measured(processes=2)
    assert not measured(cores=1)
    assert not measured(replace(config, threads=4))
    assert not measured(replace(config, compile=True))


class Counts(Silent):
    """Remembers with how many threads torch computes in each step."""

    def __init__(self) -> None:
        self.seen = set[int]()

    def batch(self, epoch: int, done: int, total: int) -> None:
        self.seen.add(torch.get_num_threads())


def test_a_run_computes_with_what_it_says_and_measuring_leaves_no_trace(
    image_folder: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"data": str(image_folder(count=12)), "model": "nano-ar", "batch_size": 8, "device": "cpu", "epochs": 1}
    before, counts = torch.get_num_threads(), Counts()
    train(config_from_recipe("small", **fields, threads=1), tmp_path / "fixed", counts)
    assert counts.seen == {1}
    rows = list(csv.DictReader((tmp_path / "fixed" / "log.csv").read_text().splitlines()))
    assert [row["threads"] for row in rows] == ["1"]
    monkeypatch.setattr("qdeploy.training.threads.LEAST_STEPS", 1)
    monkeypatch.setattr("qdeploy.training.threads.REPEATS", 1)
    monkeypatch.setattr("qdeploy.training.threads.WORTH", 0.0)  # whatever the clock says, the count stays
    monkeypatch.setattr(
        "qdeploy.training.run.thread_range", lambda *_, **__: ThreadRange(first=1, most=2, measured=True)
    )
    rehearsed, real = list[int](), Learner.rehearse

    def rehearse(self: Learner, batch: Batch, limit_s: float) -> None:
        rehearsed.append(torch.get_num_threads())
        real(self, batch, limit_s)

    monkeypatch.setattr(Learner, "rehearse", rehearse)
    train(config_from_recipe("small", **fields), tmp_path / "measured", cores=2)
    assert set(rehearsed) == {1, 2}
    assert torch.get_num_threads() == before
    (one,), (other,) = ((tmp_path / name).glob("best-*") for name in ("fixed", "measured"))
    assert one.name == other.name  # the hash of the weights
