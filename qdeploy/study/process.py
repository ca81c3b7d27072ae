"""Starts the steps of trials as processes, some at a time, and says how each ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from qdeploy.core.errors import InputError
from qdeploy.core.files import read_json, write_json
from qdeploy.core.interpreter import python_command
from qdeploy.study.trial import Spec

COMMAND = python_command("from qdeploy.study.trial import main; main(sys.argv[1])")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
LOOK_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a step ended."""

    result: dict[str, Any]
    """What the step found; empty if it failed."""
    error: str | None
    """Why the step failed, in one line; None if it succeeded."""
    wall_s: float
    """Seconds that the whole process took."""


Ended = Generator[tuple[Spec, Outcome], None, None]
"""Steps as they end; closing it ends those that still run."""


class Pool(Protocol):
    """Whatever runs the steps of trials."""

    slots: int
    """Steps at a time."""

    def run(self, specs: Iterable[Spec]) -> Ended:
        """Run steps and yield each as it ends."""

    def close(self) -> None:
        """Let go of what the pool holds."""


class StepProcess:
    """One step while it runs."""

    def __init__(self, spec: Spec, threads: int) -> None:
        self.spec, self.folder = spec, Path(spec.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(spec)
        path = self.folder / f"{spec.name}.spec.json"
        write_json(path, asdict(spec))
        self.log = self.folder / f"{spec.name}.log"
        self.begin = time.monotonic()
        # Ctrl-C is the sweep's alone, hence a session of its own
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*COMMAND, str(path)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**dict.fromkeys(THREAD_VARIABLES, str(threads)), **os.environ},
                start_new_session=True,
            )

    def poll(self) -> Outcome | None:
        """Return the outcome, or None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        self._close()
        wall_s = time.monotonic() - self.begin
        result = self._result() if code == 0 else {"error": _reason(code, self.log)}
        error = result.get("error")
        return Outcome(result={} if error else result, error=error, wall_s=wall_s)

    def _result(self) -> dict[str, Any]:
        try:
            found = read_json(self.folder / f"{self.spec.name}.json")
        except InputError as error:
            return {"error": str(error)}
        return found if isinstance(found, dict) else {"error": "its result is damaged"}

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()


def remove_leftovers(spec: Spec) -> None:
    """Remove what an earlier attempt at this step has left."""
    Path(spec.folder, f"{spec.name}.json").unlink(missing_ok=True)
    if spec.kind == "train":
        shutil.rmtree(spec.run, ignore_errors=True)
    if spec.kind == "export":
        shutil.rmtree(spec.export, ignore_errors=True)


def _reason(code: int, log: Path) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed, most likely because the memory did not suffice"
    if code < 0:
        return f"its process crashed ({signal.Signals(-code).name})"
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"its process ended with exit code {code}: {lines[-1] if lines else 'no message'}"


class LocalPool:
    """Runs steps on this machine."""

    def __init__(self, slots: int, threads: int) -> None:
        self.slots, self.threads = slots, threads

    def run(self, specs: Iterable[Spec]) -> Ended:
        """Run steps and yield each as it ends."""
        waiting, running = deque(specs), list[StepProcess]()
        try:
            while waiting or running:
                while waiting and len(running) < self.slots:
                    running.append(StepProcess(waiting.popleft(), self.threads))
                for process in list(running):
                    outcome = process.poll()
                    if outcome is not None:
                        running.remove(process)
                        yield process.spec, outcome
                time.sleep(LOOK_S)
        finally:
            for process in running:
                process.stop()

    def close(self) -> None:
        """Nothing is held."""
