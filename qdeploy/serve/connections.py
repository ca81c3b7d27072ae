"""Connections that cannot be held open by clients that send slowly, or nothing."""

from __future__ import annotations

import asyncio
import json
import re
from asyncio import TimerHandle
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from qdeploy.serve.config import ServeConfig

MAX_HEADER_BYTES = 64 * 1024
UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)
"""A header by which curl and Java offer HTTP/2 and go on in HTTP/1.1 where the server does not take it up."""
LAST_WORDS_S = 0.2
"""How long an idle connection stays open when the server stops: a request may be on its way."""


class Connections:
    """The idle connections of a server, of which the oldest makes way when there are too many."""

    def __init__(self, config: ServeConfig, most: int) -> None:
        self.config = config
        self.most = most
        self.idle: dict[GuardedProtocol, None] = {}

    def protocol(self) -> type[GuardedProtocol]:
        """Return a class of connections for uvicorn, all of which belong together."""
        return type("OurProtocol", (GuardedProtocol,), {"together": self})


class GuardedProtocol(HttpToolsProtocol):
    """One connection, with limits on the time and the size of headers, and on the time of a body."""

    together: Connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._timer: TimerHandle | None = None
        self._header_bytes = 0
        self._in_headers = True
        self._left = False
        self._await(self.together.config.header_timeout_s)
        self._rest()
        if len(self.connections) > self.together.most:
            oldest = next(iter(self.together.idle))
            del self.together.idle[oldest]  # it is lost later: several may come before
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        self.together.idle.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what a client sent."""
        if self._left:
            return
        if self._in_headers:
            self._header_bytes += len(data)
            data = _without_upgrade(data)
        super().data_received(data)  # most requests are complete then, and need no timer
        if self._timer is None and (self._header_bytes or not self._in_headers):
            c = self.together.config
            self._await(c.header_timeout_s if self._in_headers else c.body_timeout_s)
        if self._in_headers and self._header_bytes > MAX_HEADER_BYTES:
            self._refuse(431, "headers-too-large", f"the headers have more than {MAX_HEADER_BYTES // 1024} kB")

    def on_headers_complete(self) -> None:
        """Begin to wait for the body."""
        self._stop_waiting()
        self._in_headers = False
        self.together.idle.pop(self, None)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Stop waiting: the request is complete."""
        self._stop_waiting()
        self._in_headers, self._header_bytes = True, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Count the connection as idle again."""
        super().on_response_complete()
        self._rest()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self._refuse(400, "bad-http", "the request is not valid HTTP")

    def shutdown(self) -> None:
        """Answer what is on its way, then close."""
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(LAST_WORDS_S, self._close_if_idle)
        else:
            self.cycle.keep_alive = False

    def _close_if_idle(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        elif not self.transport.is_closing():
            self._left = True  # a request that is on its way finds an end, and no reset
            self.transport.write_eof()
            self.loop.call_later(LAST_WORDS_S, self.transport.close)

    def _rest(self) -> None:
        if not self.transport.is_closing():
            self.together.idle[self] = None

    def _await(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._header_bytes == 0 and self._in_headers:
            self.transport.close()
        else:
            self._refuse(408, "too-slow", "the request did not arrive in time")

    def _refuse(self, status: int, reason: str, what: str) -> None:
        """Answer outside the application and close; where an answer has begun, only close."""
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            body = json.dumps({"error": what, "reason": reason}).encode()
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(b"".join((STATUS_LINE[status], head, body)))
        self.transport.close()


def _without_upgrade(data: bytes) -> bytes:
    """Return the beginning of a request without its offer of another protocol, for which the parser drops the body."""
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[:end]
    return UPGRADE.sub(b"", head) + data[len(head) :] if b"pgrade" in head else data


def raised_file_limit() -> int:
    """Allow this process as many open files as the system lets it, and return the number."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted: Any = hard if hard != resource.RLIM_INFINITY else max(soft, 65536)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError):
        return soft
    return int(wanted)
