"""Load for a server: a closed loop by ``wrk``, and an open loop whose schedule is drawn beforehand.

The closed loop falls back on the open loop's client where ``wrk`` is not installed. A closed loop's client waits for an
answer before it asks again, which finds what a server can do at most. An open loop's asks when its time has come, and
counts each answer's time from then on, whether the request could be sent at once or not: what a user waits.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import os
import random
import re
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

WRK = shutil.which("wrk")
LUA = """
local requests, n, i = {}, 0, 0
function init(args)
  local file = io.open(args[1], "rb")
  while true do
    local size = file:read("*n")
    if not size then break end
    file:read(1)
    n = n + 1
    requests[n] = file:read(size)
  end
end
function request()
  i = i % n + 1
  return requests[i]
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\n{"n": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "not_2xx": %d, "broken": %d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, e.status,
    e.connect + e.read + e.write + e.timeout))
end
"""
MOST_CONNECTIONS = 900
"""What ``select`` takes, less than 1024; it alone waits for microseconds."""
LINGER_S = 12.0
"""How long the last answers are waited for: longer than a server's deadline."""


@dataclass(frozen=True, kw_only=True)
class Closed:
    """What a closed loop found."""

    n: int
    seconds: float
    p50_ms: float
    p99_ms: float
    not_2xx: int
    broken: int

    @property
    def per_s(self) -> float:
        return self.n / self.seconds


@dataclass(frozen=True)
class Answered:
    """One request of an open loop."""

    due_s: float
    """When it was to be sent, from the beginning."""
    latency_s: float
    """From then to the last byte of the answer."""
    status: int
    """HTTP status; 0 if the connection broke or no answer came."""
    sent_s: float = 0.0
    """When it was sent, from the beginning."""


def request(path: str, body: bytes, kind: str = "application/octet-stream") -> bytes:
    """Return a POST request as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def closed(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Closed:
    """Keep so many connections busy for a while."""
    return (_wrk if WRK else _own)(port, requests, connections, seconds)


def _wrk(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Closed:
    with tempfile.TemporaryDirectory() as name:
        script, file = Path(name) / "load.lua", Path(name) / "requests"
        script.write_text(LUA)
        file.write_bytes(b"".join(b"%d\n%b" % (len(r), r) for r in requests))
        command = [str(WRK), "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", str(script)]
        command += [f"http://127.0.0.1:{port}/", "--", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Closed(**json.loads(done.stdout.splitlines()[-1]))


def _own(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Closed:
    found = Client(port, requests).closed(connections, seconds)
    good = sorted(a.latency_s * 1e3 for a in found if a.status == 200)
    return Closed(
        n=len(found),
        seconds=max((a.due_s + a.latency_s for a in found), default=seconds),
        p50_ms=good[len(good) // 2] if good else 0.0,
        p99_ms=good[int(len(good) * 0.99)] if good else 0.0,
        not_2xx=sum(a.status not in (0, 200) for a in found),
        broken=sum(a.status == 0 for a in found),
    )


def constant(rate: float, seconds: float) -> list[float]:
    """Return times at equal distances."""
    return [i / rate for i in range(int(rate * seconds))]


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Return times as independent users choose them."""
    draw, times, now = random.Random(seed), [], 0.0
    while (now := now + draw.expovariate(rate)) < seconds:
        times.append(now)
    return times


def ideal_latencies(schedule: Iterable[float], service_s: float) -> list[float]:
    """Return the latencies of one server that takes the same time for every request of a schedule, in turn."""
    free, found = 0.0, []
    for due in schedule:
        free = max(free, due) + service_s
        found.append(free - due)
    return found


@dataclass
class _Connection:
    socket: socket.socket
    due: float = 0.0
    sent: float = 0.0
    received: bytearray = field(default_factory=bytearray)


class Client:
    """Many connections from one thread, with timers of microseconds and no waiting in a loop."""

    def __init__(self, port: int, requests: Sequence[bytes]) -> None:
        self._port = port
        self._requests = itertools.cycle(requests)
        self._free: deque[_Connection] = deque()
        self._busy: dict[int, _Connection] = {}
        self._answers: list[Answered] = []
        self._begin = 0.0
        _fine_timers()

    def open(self, schedule: Sequence[float]) -> list[Answered]:
        """Send requests at the times of a schedule and return all answers."""
        gc.collect()
        gc.disable()
        try:
            self._begin = time.perf_counter()
            waiting: deque[float] = deque()
            coming = iter(schedule)
            due = next(coming, None)
            while due is not None or waiting or self._busy:
                now = time.perf_counter() - self._begin
                while due is not None and due <= now:
                    waiting.append(due)
                    due = next(coming, None)
                while waiting and (self._free or len(self._busy) < MOST_CONNECTIONS):
                    self._send(waiting.popleft())
                if due is None and now > schedule[-1] + LINGER_S:
                    break
                self._receive(0.1 if due is None else due - (time.perf_counter() - self._begin))
            for connection in list(self._busy.values()):
                self._broken(connection)
            return self._taken()
        finally:
            gc.enable()

    def closed(self, connections: int, seconds: float) -> list[Answered]:
        """Keep so many connections busy and return all answers."""
        self._begin = time.perf_counter()
        while (now := time.perf_counter() - self._begin) < seconds:
            while len(self._busy) < connections:
                self._send(now)
            self._receive(0.1)
        while self._busy and time.perf_counter() - self._begin < seconds + LINGER_S:
            self._receive(0.1)
        return self._taken()

    def close(self) -> None:
        """Close all connections."""
        for connection in (*self._free, *self._busy.values()):
            connection.socket.close()
        self._free.clear()
        self._busy.clear()

    def _taken(self) -> list[Answered]:
        answers, self._answers = self._answers, []
        return answers

    def _send(self, due: float) -> None:
        connection = self._open_one() or _Connection(_connected(self._port))
        connection.due, connection.sent = due, time.perf_counter() - self._begin
        self._busy[connection.socket.fileno()] = connection
        data = memoryview(next(self._requests))
        try:
            while data:
                try:
                    data = data[connection.socket.send(data) :]
                except BlockingIOError:
                    select.select([], [connection.socket], [], 1.0)
        except OSError:
            self._broken(connection)

    def _open_one(self) -> _Connection | None:
        """Return a free connection that the server has not closed: it closes those that nobody used for long."""
        while self._free:
            connection = self._free.pop()
            try:
                connection.socket.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return connection
            except OSError:
                pass
            connection.socket.close()
        return None

    def _receive(self, wait_s: float) -> None:
        ready, _, _ = select.select(list(self._busy), [], [], max(0.0, wait_s))
        for number in ready:
            self._read(self._busy[number])

    def _read(self, connection: _Connection) -> None:
        try:
            block = connection.socket.recv(65536)
        except OSError:
            block = b""
        if not block:
            self._broken(connection)
            return
        connection.received += block
        head = connection.received.find(b"\r\n\r\n")
        if head < 0:
            return
        headers = bytes(connection.received[:head]).lower()
        length = re.search(rb"\r\ncontent-length: *(\d+)", headers)
        if length is None or len(connection.received) < head + 4 + int(length[1]):
            return
        self._end(connection, int(headers[9:12]))
        connection.received.clear()
        if b"\r\nconnection: close" in headers:
            connection.socket.close()
        else:
            self._free.append(connection)

    def _broken(self, connection: _Connection) -> None:
        self._end(connection, 0)
        connection.socket.close()

    def _end(self, connection: _Connection, status: int) -> None:
        del self._busy[connection.socket.fileno()]
        took = time.perf_counter() - self._begin - connection.due
        self._answers.append(Answered(connection.due, took, status, connection.sent))


def _connected(port: int, source: str = "127.0.0.1") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setblocking(False)
    return connection


def _fine_timers() -> None:
    """Let this thread wake up when it wants to, not 50 microseconds later."""
    if os.name == "posix" and hasattr(ctypes.CDLL(None), "prctl"):
        ctypes.CDLL(None).prctl(29, 1)  # PR_SET_TIMERSLACK, nanoseconds
