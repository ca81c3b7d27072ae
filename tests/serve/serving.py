"""``qdeploy serve`` as a real process, with its log and the file of its answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, TypeVar
from urllib.request import urlopen

EXAMPLES = Path(__file__).parents[2] / "examples"
T = TypeVar("T")


def until(what: Callable[[], T], timeout_s: float = 20.0) -> T:
    """Wait until something is so, and return it."""
    end = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < end, "not within the time"
        time.sleep(0.02)
    return found


class Serving:
    """A server that is ready, and its end."""

    def __init__(
        self,
        place: Path,
        *options: str,
        ready: bool = True,
        preexec_fn: Callable[[], None] | None = None,
        **environment: str,
    ) -> None:
        self.place = place
        self.log: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qdeploy", "serve", "--port", "0", "--no-selftest", *options],
            cwd=place,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=preexec_fn,
        )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline() if ready else ""
        self.url = line.split()[-1] if line else ""
        assert self.url or not ready, self.log

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(json.loads(line) if line.startswith("{") else {"event": "text", "text": line})

    def events(self, event: str) -> list[dict[str, Any]]:
        """What the log says of one event so far."""
        return [entry for entry in self.log if entry["event"] == event]

    def report(self) -> Any:
        with urlopen(f"{self.url}/report", timeout=10) as answer:
            return json.load(answer)

    def answers(self, name: str = "answers.jsonl") -> list[dict[str, Any]]:
        """The whole lines of the answers so far."""
        path = self.place / name
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def kill(self) -> None:
        self.process.kill()
        self._end()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self._end()

    def _end(self) -> int:
        code = self.process.wait(30)
        self._reader.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return code

    def __enter__(self) -> Serving:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            assert self.stop() == 0
        else:
            self._end()


@contextmanager
def refused(place: Path, *options: str, **environment: str) -> Iterator[str]:
    """Start a server that must end at once with exit code 2; yields the line that says why."""
    with Serving(place, *options, ready=False, preexec_fn=None, **environment) as serving:
        assert serving.process.wait(30) == 2
        until(lambda: serving.events("text"))
        (line,) = (entry["text"] for entry in serving.events("text"))
        yield line
