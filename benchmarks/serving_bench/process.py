"""Servers under load: started on given cores, awaited, measured and stopped."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

POLL_S = 0.01
ROOT = Path(__file__).parents[2]


class Process:
    """A server and all processes that it starts."""

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        health: str,
        cores: Sequence[int],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        log: Path | None = None,
    ) -> None:
        self.port = port
        self._out = log.open("ab") if log else subprocess.DEVNULL
        begin = time.perf_counter()
        self.popen = subprocess.Popen(
            list(command),
            env={**os.environ, **(env or {})},
            cwd=cwd,
            stdout=self._out,
            stderr=self._out,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        self.ready_s = self._await(health, begin)
        """Seconds to the first 200, asked for every ten milliseconds."""

    def _await(self, health: str, begin: float) -> float:
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if get(self.port, health, 1.0)[0] == 200:
                    return time.perf_counter() - begin
            if self.popen.poll() is not None:
                sys.exit(f"the server ended with {self.popen.returncode}: {' '.join(map(str, self.popen.args))}")
            if time.perf_counter() - begin > 60:
                self.kill()
                sys.exit(f"the server is not ready after a minute: {' '.join(map(str, self.popen.args))}")
            time.sleep(POLL_S)

    def pids(self) -> list[int]:
        """Return the process and all below it."""
        return tree(self.popen.pid)

    def memory(self) -> dict[str, int]:
        """Return bytes over all processes: resident, and with what is shared counted once."""
        pids = self.pids()
        found = [_kilobytes(f"/proc/{pid}/smaps_rollup", "Rss", "Pss") for pid in pids]
        return {
            "rss_bytes": sum(f.get("Rss", 0) for f in found),
            "pss_bytes": sum(f.get("Pss", 0) for f in found),
            "processes": len(pids),
        }

    def peak_bytes(self) -> int:
        """Return the sum of the processes' largest resident sizes."""
        return sum(_kilobytes(f"/proc/{pid}/status", "VmHWM").get("VmHWM", 0) for pid in self.pids())

    def cpu_s(self) -> float:
        """Return the CPU seconds of all processes so far."""
        return sum(map(cpu_s, self.pids()))

    def pause(self) -> None:
        """Take it off its cores, so that what it does while it has nothing to do costs others nothing."""
        os.killpg(self.popen.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self.popen.pid, signal.SIGCONT)

    def end(self, timeout_s: float = 10.0) -> dict[str, object]:
        """Send SIGTERM, as a service manager does, and say what happened; then end what is left."""
        pids, begin = self.pids(), time.perf_counter()
        self.popen.terminate()
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.popen.wait(timeout_s)
        took = time.perf_counter() - begin
        while (left := [p for p in pids if _alive(p)]) and time.perf_counter() - begin < took + 2.0:
            time.sleep(0.02)
        self.kill()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return {"exit_code": code, "seconds": round(took, 3), "processes_left_2_s_later": len(left)}

    def kill(self) -> None:
        """End the whole group of processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        if not isinstance(self._out, int):
            self._out.close()


def qdeploy_server(
    model: Path, cores: Sequence[int], *arguments: object, cwd: Path | None = None, log: Path | None = None
) -> Process:
    """Start ``qdeploy serve`` of this working copy."""
    port = free_port()
    command = [sys.executable, "-m", "qdeploy", "serve", str(model), "--port", str(port), *map(str, arguments)]
    env = {"PYTHONPATH": str(ROOT)}
    return Process(command, port, "/v2/health/ready", cores, env, cwd, log)


def get(port: int, path: str, timeout_s: float = 10.0) -> tuple[int, bytes]:
    """Ask once on a new connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def post(port: int, path: str, body: bytes, kind: str = "application/octet-stream") -> tuple[int, bytes]:
    """Send once on a new connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, body, {"content-type": kind})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def tree(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process so far, to the nanosecond."""
    total = 0
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _kilobytes(file: str, *names: str) -> dict[str, int]:
    found = {}
    with contextlib.suppress(OSError):
        for line in Path(file).read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in names:
                found[name] = int(rest.split()[0]) * 1024
    return found
