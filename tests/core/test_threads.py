from __future__ import annotations

import threading

import pytest

from qdeploy.core.threads import beside


def test_both_are_done_at_the_same_time() -> None:
    here, there = threading.Event(), threading.Event()

    def task() -> bool:
        there.set()
        return here.wait(5)

    def other() -> None:
        assert there.wait(5)
        here.set()

    assert beside(task, other)


def test_the_error_of_the_task_is_raised_here_after_the_other() -> None:
    done = []
    with pytest.raises(ZeroDivisionError):
        beside(lambda: 1 / 0, lambda: done.append(True))
    assert done


def test_an_error_of_the_other_does_not_wait() -> None:
    hold = threading.Event()
    with pytest.raises(ZeroDivisionError):
        beside(lambda: hold.wait(5), lambda: print(1 / 0))
    hold.set()


def test_without_a_thread_to_be_had_the_task_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert beside(threading.get_ident, lambda: None) == threading.get_ident()
