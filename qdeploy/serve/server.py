"""The HTTP server: uvicorn with our limits and our way of stopping."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

import uvicorn

from qdeploy.core.errors import InputError
from qdeploy.core.files import write_json
from qdeploy.serve.app import Application
from qdeploy.serve.config import MOST_CONNECTIONS, ServeConfig
from qdeploy.serve.connections import Connections, raised_file_limit
from qdeploy.serve.logs import Log, uvicorn_told
from qdeploy.serve.memory import settle
from qdeploy.serve.models import Event
from qdeploy.serve.report import machine, report
from qdeploy.serve.service import Service
from qdeploy.serve.sources.run import Sources

SPARE_FILES = 100
"""Open files that connections leave to everything else."""
BACKLOG = 2048
ACCEPTED_AT_A_TIME = 16
"""New connections that are taken between two stretches of work. Of one socket libuv takes only one, and then a busy
server's new clients, health checks among them, would wait for seconds."""


class _Uvicorn(uvicorn.Server):
    """Leaves signals to us: uvicorn would close its listener at the first, and end with the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield


class Server:
    """One process that serves over HTTP until it is told to stop.

    Args:
        given: Model files or export folders, each as ``PATH`` or ``NAME=PATH``; by default the newest export below
            ``./exports``, else the model that ships in the package. Those of one name are its versions 1, 2 and so on.
        config: How to serve.
        event: Called with what happens; by default a log on standard error.
        listener: A bound socket; by default one is made of the configuration.
        started: Called with the service and its address when it is ready.

    Raises:
        InputError: If the address cannot be used.
        MissingDependencyError: If a camera or the broker needs what is not installed.
        QdeployError: If a model cannot be opened.
    """

    def __init__(
        self,
        given: Sequence[str] = (),
        config: ServeConfig | None = None,
        event: Event | None = None,
        listener: socket.socket | None = None,
        started: Callable[[Service, str], None] | None = None,
    ) -> None:
        self.config = config or ServeConfig()
        self._event = event or Log()
        self._started = started or (lambda service, url: None)
        self._sources = Sources(self.config.sources, self._event)
        self.service = Service(given, self.config, self._event)
        self._listener = listener or bound(self.config)
        most = min(raised_file_limit() - SPARE_FILES, MOST_CONNECTIONS)
        self._uvicorn = _Uvicorn(self._uvicorn_config(max(most, 16)))
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        """Address of the server."""
        return url_of(self._listener)

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or ``stop``; then answer what is in flight and write the report."""
        loop = _new_loop()
        try:
            with uvicorn_told(self._event):
                loop.run_until_complete(self._serve())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()

    def stop(self) -> None:
        """Tell the server to stop, from any thread; a second call ends it at once."""
        assert self._loop is not None, "the server does not run"
        self._loop.call_soon_threadsafe(self._stop)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError, RuntimeError):  # in another thread there are no signals
                self._loop.add_signal_handler(number, self._stop)
        try:
            more = ACCEPTED_AT_A_TIME - 1 if self.config.workers == 1 else 0  # of several, one would take all
            doors = [self._listener, *(self._listener.dup() for _ in range(more))]
            serving = asyncio.ensure_future(self._uvicorn.serve(sockets=doors))
            await asyncio.to_thread(self.service.start)  # liveness is answered meanwhile
            await asyncio.to_thread(self._sources.start, self.service)
            if threading.current_thread() is threading.main_thread():
                settle()
            url = self.url
            self._event("ready", url=url)
            self._loop.run_in_executor(None, machine)  # so that the first report need not look it up
            self._started(self.service, url)
            await serving
            if self.config.report is not None and self.config.workers == 1:
                write_json(self.config.report, report(self.service))
        finally:
            self._uvicorn.should_exit = True
            await asyncio.gather(serving, return_exceptions=True)
            await asyncio.to_thread(self._sources.stop)
            await asyncio.to_thread(self.service.stop)
            self._event("stopped")

    def _stop(self) -> None:
        if self.service.leaving:
            self._uvicorn.should_exit = self._uvicorn.force_exit = True
            return
        self._event("stopping")
        self.service.leaving = True
        assert self._loop is not None
        self._loop.call_later(self.config.drain_delay_s, self._close)

    def _close(self) -> None:
        self._uvicorn.should_exit = True

    def _uvicorn_config(self, connections: int) -> uvicorn.Config:
        c = self.config
        return uvicorn.Config(
            Application(self.service),
            http=Connections(c, connections).protocol(),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=max(1, round(c.idle_timeout_s)),
            timeout_graceful_shutdown=max(1, round(c.drain_s)),
        )


def bound(config: ServeConfig) -> socket.socket:
    """Return a listening socket.

    Raises:
        InputError: If the address is taken, not this machine's, or not allowed.
    """
    listener = None
    try:
        infos = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = infos[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except (OSError, UnicodeError) as error:  # of a name that cannot be one
        if listener is not None:
            listener.close()
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(
            f"cannot listen on {config.host}, port {config.port}: {why}", fix="give another `port` or `host`"
        ) from error
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the address of a socket as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ModuleNotFoundError:  # on Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
