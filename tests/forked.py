"""Whole commands in processes of their own, forked from one that has imported everything: no start-up to wait for."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qdeploy.cli.main import run

LIMIT_S = 600
"""Of a busy machine; what takes longer hangs."""


@dataclass(frozen=True)
class Ended:
    """How a forked process ended, and what it printed."""

    code: int
    """The exit code, or minus the number of the signal that ended it."""
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """The line of an error, or an empty text."""
        return next((line for line in self.err.splitlines() if line.startswith("qdeploy: ")), "")

    @property
    def broken(self) -> bool:
        """Whether it ended as no input may let it end."""
        return "Traceback" in self.err or self.code not in (0, 2)

    @property
    def fault(self) -> str:
        """What no input may do; empty where all is well."""
        if self.broken:
            return f"exit code {self.code}: {self.err.strip()[-300:]}"
        if self.code == 2 and len([x for x in self.err.splitlines() if x.startswith("qdeploy: ")]) != 1:
            return f"exit code 2 without one line that says why: {self.err[-300:]}"
        return ""


def forked(work: Callable[[], int], folder: Path, *, kill_after_s: float | None = None) -> Ended:
    """Do something in a process of its own, in a folder; it may be killed after a time."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with warnings.catch_warnings():  # of threads of this process, which the child does not have and does not need
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            _leave(work, folder, out.fileno(), err.fileno())
        if kill_after_s is not None:
            _kill_later(child, kill_after_s)
        _, status = os.waitpid(child, 0)
        out.seek(0)
        err.seek(0)
        texts = [stream.read().decode(errors="replace") for stream in (out, err)]
    return Ended(os.waitstatus_to_exitcode(status), *texts)


def _kill_later(child: int, seconds: float) -> None:
    """Wait without reaping the child, so that its number stays its own, then kill it."""
    handle = os.pidfd_open(child)
    try:
        import select

        poll = select.poll()
        poll.register(handle, select.POLLIN)
        if not poll.poll(seconds * 1000):
            os.kill(child, signal.SIGKILL)
    finally:
        os.close(handle)


def _leave(work: Callable[[], int], folder: Path, out: int, err: int) -> None:
    code = 99
    try:
        os.chdir(folder)
        os.dup2(out, 1)
        os.dup2(err, 2)
        signal.alarm(LIMIT_S)
        code = work()
    except BaseException as error:  # whatever it is, the judge must see it
        os.write(2, f"Traceback: {type(error).__name__}: {error}".encode(errors="replace"))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(folder: Path, *words: object) -> Ended:
    """Run a command line."""
    return forked(lambda: run([str(word) for word in words]), folder)
