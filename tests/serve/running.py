"""Servers under test: in a thread of the test's own process, or as the command in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qdeploy.core.artifact import SHIPPED
from qdeploy.serve import ServeConfig, Server
from qdeploy.serve.service import Service

FP32, INT8 = SHIPPED / "model.fp32.onnx", SHIPPED / "model.int8.onnx"


@dataclass
class Reply:
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Running:
    """A server that answers."""

    url: str
    service: Service | None = None
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.host.partition(":")
        return host, int(port)

    def send(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Reply:
        connection = HTTPConnection(*self.address, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str) -> Reply:
        return self.send("GET", path)

    def raw(self, data: bytes, wait_s: float = 10.0) -> bytes:
        """Send bytes and return what comes back until the server closes or is silent for a while."""
        with socket.create_connection(self.address, timeout=wait_s) as connection:
            connection.sendall(data)
            connection.settimeout(wait_s)
            received = b""
            try:
                while block := connection.recv(65536):
                    received += block
            except (TimeoutError, ConnectionResetError):
                pass
            return received

    def seen(self, event: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == event]


@contextmanager
def in_thread(given: Sequence[object] = (INT8,), **settings: Any) -> Iterator[Running]:
    """Serve in a thread of this process."""
    events: list[dict[str, Any]] = []
    up = threading.Event()
    failures: list[BaseException] = []

    def event(name: str, level: str = "info", **details: Any) -> None:
        events.append({"event": name, "level": level, **details})

    server = Server(
        [str(g) for g in given],
        ServeConfig(**{"port": 0, "poll_s": 0.1, **settings}),
        event,
        started=lambda service, url: up.set(),
    )

    def run() -> None:
        try:
            server.run()
        except BaseException as error:
            failures.append(error)
        finally:
            up.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert up.wait(60)
    if failures:
        raise failures[0]
    try:
        yield Running(server.url, server.service, events)
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()
        assert not failures, failures


class Process:
    """``qdeploy serve`` in a process of its own."""

    def __init__(
        self, *arguments: object, cwd: Path, env: dict[str, str] | None = None, files: int | None = None
    ) -> None:
        self.log = cwd / "serve.log"
        self._out = self.log.open("w")
        command = [sys.executable, "-m", "qdeploy", "serve", "--port", "0", *map(str, arguments)]
        if files is not None:
            command = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command]
        begin = time.perf_counter()
        self.process = subprocess.Popen(
            command, cwd=cwd, stdout=subprocess.PIPE, stderr=self._out, text=True, env={**os.environ, **(env or {})}
        )
        assert self.process.stdout is not None
        line = self.first_line = self.process.stdout.readline()
        self.ready_s = time.perf_counter() - begin
        found = re.search(r"http://[\w.:\[\]]+", line)
        if found is None:
            self.process.wait(30)
            raise AssertionError(f"{line}{self.log.read_text()}")
        self.running = Running(found[0])

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 60.0) -> int:
        """Send a signal, wait for the end and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout_s)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._out.close()
        return code

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events of a name in the log."""
        entries = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [e for e in entries if e["event"] == name]


@contextmanager
def in_process(
    *arguments: object, cwd: Path, env: dict[str, str] | None = None, files: int | None = None
) -> Iterator[Process]:
    """Serve in a process of its own, which may have so many files open."""
    process = Process(*arguments, cwd=cwd, env=env, files=files)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.kill()
        process.end()


def until(what: str, condition: Any, timeout_s: float = 20.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)
