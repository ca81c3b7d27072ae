"""``serve``: one process, or several on one port with one that starts them, stops them and replaces those that die."""

from __future__ import annotations

import json
import multiprocessing
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from qdeploy.core.errors import InputError, QdeployError
from qdeploy.core.files import write_bytes, write_json
from qdeploy.serve.config import ServeConfig
from qdeploy.serve.logs import Log
from qdeploy.serve.report import compose, snapshot
from qdeploy.serve.server import Server, bound, url_of
from qdeploy.serve.service import Service
from qdeploy.serve.sources.config import SourcesConfig

RESTARTS_PER_MINUTE = 10
"""Workers that may die in a minute; after one more the server ends."""
SHARE_EVERY_S = 1.0


def serve(
    given: Sequence[str] = (),
    config: ServeConfig | None = None,
    *,
    quiet: bool = False,
    started: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve model files over HTTP until SIGTERM or SIGINT, with a log on standard error.

    Args:
        given: Model files or export folders; see ``Server``.
        config: How to serve.
        quiet: Whether the log has errors only.
        started: Called with the server's address when it is ready.

    Raises:
        InputError: If the address cannot be used.
        QdeployError: If a model cannot be opened.
    """
    config = config or ServeConfig()
    if config.workers == 1:
        Server(given, config, Log(quiet=quiet), started=lambda service, url: started(url)).run()
        return
    with bound(config) as listener, tempfile.TemporaryDirectory(prefix="qdeploy-serve-") as folder:
        Workers(given, config, quiet, listener, Path(folder)).run(started)


class Workers:
    """The processes, seen from the one that looks after them."""

    def __init__(
        self, given: Sequence[str], config: ServeConfig, quiet: bool, listener: socket.socket, folder: Path
    ) -> None:
        self._start = partial(_spawn, tuple(given), config, quiet, listener, folder)
        self._config = config
        self._log = Log(quiet=quiet)
        self._url = url_of(listener)
        self._folder = folder
        self._stopping = threading.Event()
        self._deaths: deque[float] = deque()
        self._workers: dict[int, BaseProcess] = {}

    def run(self, started: Callable[[str], None]) -> None:
        """Serve until a signal."""
        for wanted in (signal.SIGTERM, signal.SIGINT):
            with suppress(ValueError):  # in another thread there are no signals
                signal.signal(wanted, lambda *_: self._stopping.set())
        try:
            ready = {}
            for number in range(self._config.workers):
                self._workers[number], ready[number] = self._start(number)
            for connection in ready.values():
                _await_ready(connection)
            self._log("ready", url=self._url, workers=self._config.workers)
            started(self._url)
            self._watch()
        finally:
            self._end()
        if self._config.report is not None:
            write_json(self._config.report, compose(_snapshots(self._folder)))
        self._log("stopped")

    def _watch(self) -> None:
        """Replace workers that die, until the server stops."""
        while not self._stopping.is_set():
            wait([w.sentinel for w in self._workers.values()], timeout=0.2)
            for number, worker in list(self._workers.items()):
                if worker.is_alive() or self._stopping.is_set():
                    continue
                self._log("worker-died", level="error", worker=number, exit_code=worker.exitcode)
                now = time.monotonic()
                self._deaths.append(now)
                while now - self._deaths[0] > 60:
                    self._deaths.popleft()
                if len(self._deaths) > RESTARTS_PER_MINUTE:
                    raise QdeployError(
                        f"{len(self._deaths)} workers died within a minute, the last with exit code {worker.exitcode}",
                        fix="serve with one of the `workers` and read the log",
                    )
                self._workers[number], ready = self._start(number)
                ready.close()  # nobody waits for it

    def _end(self) -> None:
        """Let every worker answer what is in flight; a second signal, or the time, ends them at once."""
        self._stopping.clear()
        for worker in self._workers.values():
            worker.terminate()  # SIGTERM: it drains
        end = time.monotonic() + self._config.drain_delay_s + self._config.drain_s + 10
        while any(w.is_alive() for w in self._workers.values()):
            if self._stopping.wait(0.05) or time.monotonic() > end:
                for worker in self._workers.values():
                    worker.kill()
                break
        for worker in self._workers.values():
            worker.join()


def _spawn(
    given: tuple[str, ...], config: ServeConfig, quiet: bool, listener: socket.socket, folder: Path, number: int
) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    arguments = (given, config, quiet, listener, folder, number, theirs)
    process = context.Process(target=_work, args=arguments, name=f"qdeploy-serve-{number}")
    process.start()
    theirs.close()
    return process, ours


def _await_ready(connection: Connection) -> None:
    try:
        why = connection.recv()
    except EOFError:
        why = "a worker ended before it was ready"
    if why is not None:
        raise InputError(why)


def _work(
    given: tuple[str, ...],
    config: ServeConfig,
    quiet: bool,
    listener: socket.socket,
    folder: Path,
    number: int,
    ready: Connection,
) -> None:
    """Serve in a worker's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent passes it on as SIGTERM
    stop = threading.Event()

    def share(service: Service) -> None:
        with suppress(OSError):
            write_bytes(folder / f"{number}.json", json.dumps(snapshot(service)).encode())

    def started(service: Service, url: str) -> None:
        service.others = lambda: _snapshots(folder, but=number)
        threading.Thread(target=_every, args=(SHARE_EVERY_S, stop, partial(share, service)), daemon=True).start()
        share(service)
        with suppress(OSError):  # of a worker that replaces another nobody waits for it
            ready.send(None)

    try:
        if number > 0:  # one worker looks after folders and cameras for all
            config = replace(config, sources=SourcesConfig())
        server = Server(given, config, Log(quiet=quiet, worker=number), listener, started)
        threading.Thread(target=_follow_parent, args=(server,), daemon=True).start()
        server.run()
        stop.set()
        share(server.service)
    except QdeployError as error:
        try:
            ready.send(str(error))
        except OSError:  # nobody waits for it
            Log(quiet=quiet, worker=number)("worker-failed", level="error", why=str(error))
        sys.exit(1)


def _every(seconds: float, stop: threading.Event, work: Callable[[], None]) -> None:
    while not stop.wait(seconds):
        work()


def _follow_parent(server: Server) -> None:
    """End when the parent ends, however it ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    with suppress(RuntimeError):
        server.stop()


def _snapshots(folder: Path, but: int | None = None) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.glob("*.json")):
        if path.stem != str(but):
            with suppress(OSError, ValueError):
                found.append(json.loads(path.read_text()))
    return found
