"""Processes of trials: how each end is told, some at a time, none left over."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from qdeploy.study import process
from qdeploy.study.process import LocalPool, StepProcess
from qdeploy.study.trial import Spec

FAKE = Path(__file__).parent / "fake_trial.py"


@pytest.fixture(autouse=True)
def fake_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "COMMAND", (sys.executable, str(FAKE)))
    for name in process.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def spec(folder: Path, model: str) -> Spec:
    return Spec(kind="train", model=model, folder=str(folder / model))


def test_each_end_has_its_reason_and_stops_nothing(tmp_path: Path) -> None:
    names = ("raises", "killed", "crashes", "damaged", "silent", "fine")
    ended = {s.model: o for s, o in LocalPool(2, 3).run(spec(tmp_path, n) for n in names)}
    assert set(ended) == set(names)
    reasons = {name: outcome.error or "" for name, outcome in ended.items()}
    assert reasons["raises"] == "its process ended with exit code 1: RuntimeError: this model cannot be built"
    assert "most likely because the memory did not suffice" in reasons["killed"]
    assert "SIGABRT" in reasons["crashes"]
    assert "not valid JSON" in reasons["damaged"]
    assert "cannot be read" in reasons["silent"]
    assert reasons["fine"] == ""
    assert ended["fine"].result == {"answer": 42, "threads": "3"}
    assert ended["raises"].result == {}
    assert 0.3 <= ended["fine"].wall_s < 30


def test_so_many_run_at_a_time(tmp_path: Path) -> None:
    for slots, together in ((1, False), (2, True)):
        folder = tmp_path / str(slots)
        assert len(list(LocalPool(slots, 1).run(spec(folder, n) for n in ("a", "b")))) == 2
        begin_a, begin_b = (float((folder / n / "times.txt").read_text()) for n in ("a", "b"))
        assert (abs(begin_b - begin_a) < 0.3) == together


def test_closing_ends_what_runs(tmp_path: Path) -> None:
    ended = LocalPool(2, 1).run(spec(tmp_path, n) for n in ("fine", "sleeps", "never"))
    assert next(ended)[0].model == "fine"
    pid = tmp_path / "sleeps" / "pid.txt"
    while not (pid.exists() and pid.read_text()):
        time.sleep(0.01)
    os.kill(int(pid.read_text()), 0)  # it lives
    ended.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not (tmp_path / "never" / "train-0.json").exists()


def test_the_leftovers_of_an_earlier_attempt_are_removed(tmp_path: Path) -> None:
    s = spec(tmp_path, "silent")
    s.run.mkdir(parents=True)
    (s.run / "half").touch()
    (tmp_path / "silent" / "train-0.json").write_text('{"answer": 1}')
    ((_, outcome),) = LocalPool(1, 1).run([s])
    assert outcome.error is not None
    assert not s.run.exists()


def test_a_trial_ends_with_its_sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The other end of standard input is the sweep's; when that is gone, even by SIGKILL, the trial exits."""
    code = (
        "import threading, time; from qdeploy.study.trial import end_with_parent as end; "
        "threading.Thread(target=end, daemon=True).start(); time.sleep(60)"
    )
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-c", code))
    trial = StepProcess(spec(tmp_path, "any"), 1)
    time.sleep(0.5)
    assert trial.poll() is None
    assert trial.process.stdin is not None
    trial.process.stdin.close()
    assert trial.process.wait(timeout=20) == 1
