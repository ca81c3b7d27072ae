"""The ASGI application: which request goes where, and what every request shares."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import json
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qs

from qdeploy.core.errors import QdeployError
from qdeploy.serve.body import Header, HeldBodies, decompressed, json_object, too_large
from qdeploy.serve.explanation import explained
from qdeploy.serve.images import PredictTask
from qdeploy.serve.lanes import Task
from qdeploy.serve.oip import JSON_HEADERS, Answer, InferTask
from qdeploy.serve.oip_models import (
    config_document,
    index_document,
    model_document,
    repository_request,
    require_own_files,
    server_document,
    statistics_document,
)
from qdeploy.serve.page import PAGE_HEADERS, page_file
from qdeploy.serve.refusal import Headers, RefusedError, busy, draining, late, no_memory
from qdeploy.serve.report import report
from qdeploy.serve.service import Service

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

OPEN_TO_ALL = ("/", "/favicon.ico", "/v2/health/live", "/v2/health/ready")
"""Paths that need no token: the page asks for it, and load balancers have none."""
DEFECT = b'{"error": "this is a defect of the server; its log has more", "reason": "defect"}'
DROPPED = 4
"""Up to so many times the largest body is read before it is refused."""
HELD = 8
"""So many times the largest body is what all large bodies may take in memory."""
CHEAP_BYTES = 256 * 1024
"""Requests below may be parsed and decoded between two events of the loop."""
REQUEST_ID = b"x-request-id"
GET, POST = ("GET", "HEAD"), ("POST",)


class Application:
    """Answers requests with what a service knows and computes."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._config = service.config
        self._secret = self._config.token.encode() if self._config.token else None
        self._held = HeldBodies(HELD * self._config.max_body_bytes)
        self._finished: deque[Task[Answer]] = deque()
        self._told = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._futures: dict[Task[Answer], asyncio.Future[None]] = {}
        self._numbers = itertools.count(1)
        self._prefix = os.urandom(4).hex()
        self._explaining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        begin = time.perf_counter()
        headers = dict(scope["headers"])
        identity = _identity(headers) or f"{self._prefix}-{next(self._numbers)}".encode()
        try:
            answer, status = await self._answer(scope, headers, receive), 200
            body, more = answer.body, answer.headers
        except RefusedError as refusal:
            status, body, more = refusal.status, _told(str(refusal), refusal.reason), (*JSON_HEADERS, *refusal.headers)
            if scope["method"] == "POST":
                self._service.stats.record(status)
            self._log(scope, identity, status, begin, str(refusal))
        except Exception as error:
            status, more = 500, JSON_HEADERS
            self._service.stats.record(status)
            body = DEFECT
            self._log(scope, identity, status, begin, f"{type(error).__name__}: {error}")
        else:
            if self._config.log_requests:
                self._log(scope, identity, status, begin, None)
        finally:
            self._held.release(receive)
        length = (b"content-length", str(len(body)).encode())
        await send(
            {"type": "http.response.start", "status": status, "headers": [*more, length, (REQUEST_ID, identity)]}
        )
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, headers: Header, receive: Receive) -> Answer:
        path, method = scope["path"], scope["method"]
        if self._secret is not None and path not in OPEN_TO_ALL and not path.startswith("/page/"):
            self._authorize(headers)
        if b"origin" in headers:
            _require_own_page(headers)
        if path == "/predict":
            _allow(method, POST)
            return await self._predict(scope, headers, receive)
        if path == "/explain":
            _allow(method, POST)
            return await self._explain(scope, headers, receive)
        if path.startswith("/v2/models/"):
            return await self._model(path, method, headers, receive)
        if path.startswith("/v2/repository/"):
            _allow(method, POST)
            return await self._repository(path, headers, receive)
        document = self._document(path)  # what is nowhere is 404 for every method
        _allow(method, GET)
        return document

    def _document(self, path: str) -> Answer:
        """Answer what needs no model's work."""
        service = self._service
        if path == "/v2/health/live":
            return _json({"live": True})
        if path == "/v2/health/ready":
            if not service.ready:
                raise RefusedError(503, "draining" if service.leaving else "not-ready", "the server is not ready")
            return _json({"ready": True})
        if path in ("/v2", "/v2/"):
            return _json(server_document())
        if path == "/report":
            return _json(report(service))
        if path == "/metrics":
            from qdeploy.serve.metrics import CONTENT_TYPE, exposition  # costs 40 ms, which a start need not pay

            return Answer(body=exposition(service), headers=((b"content-type", CONTENT_TYPE),))
        if path == "/openapi.json":
            from qdeploy.serve.openapi import openapi

            return _json(openapi(bool(self._secret)))
        found = page_file(path)
        if found is None:
            raise RefusedError(404, "unknown-path", f"there is nothing at {path[:80]}; see /openapi.json")
        kind, body = found
        return Answer(body=body, headers=((b"content-type", kind), *PAGE_HEADERS))

    async def _model(self, path: str, method: str, headers: Header, receive: Receive) -> Answer:
        """Answer ``/v2/models/NAME[/versions/VERSION][/infer|ready|config|stats]``."""
        words = path.split("/")[3:]
        if words == ["stats"] and "stats" not in self._service.models.served:
            _allow(method, GET)
            return _json(statistics_document(self._service.models.all))
        name, version = words[0], None
        if words[1:2] == ["versions"] and len(words) > 2:
            version, words = words[2], words[2:]
        action = words[1] if len(words) == 2 else "" if len(words) == 1 else "?"
        if action == "infer":
            _allow(method, POST)
            self._admit(name, version)
            body = await self._body(headers, receive)
            c = self._config
            served, opened = self._service.models.get(name, version)
            return await self._work(InferTask(served, opened, headers, body, c.max_body_bytes, c.max_images), len(body))
        if action not in ("", "ready", "config", "stats"):
            raise RefusedError(404, "unknown-path", f"there is nothing at {path[:80]}; see /openapi.json")
        _allow(method, GET)
        return self._about(action, name, version)

    def _about(self, action: str, name: str, version: str | None) -> Answer:
        models = self._service.models
        if action == "stats":
            chosen = models.versions(name).values() if version is None else [models.find(name, version)]
            return _json(statistics_document(chosen))
        served, opened = models.get(name, version)
        if action == "ready":
            return _json({"name": served.name, "ready": True})
        if action == "config":
            return _json(config_document(served, opened, self._config.max_images))
        return _json(model_document(served, opened, models.versions(name)))

    async def _repository(self, path: str, headers: Header, receive: Receive) -> Answer:
        """Answer ``/v2/repository/index`` and ``/v2/repository/models/NAME/load|unload``."""
        models = self._service.models
        body = decompressed(await self._body(headers, receive), headers, self._config.max_body_bytes)
        request = json_object(body) if body.strip() else {}
        words = path.split("/")[3:]
        if words == ["index"]:
            return _json(index_document(models, repository_request(request)))
        if len(words) != 3 or words[0] != "models" or words[2] not in ("load", "unload"):
            raise RefusedError(404, "unknown-path", f"there is nothing at {path[:80]}; see /openapi.json")
        if self._config.workers > 1:
            raise RefusedError(400, "bad-request", "each worker has its own models; change the files instead")
        chosen = list(models.versions(words[1]).values())
        if words[2] == "load":
            require_own_files(request)
        loop = asyncio.get_running_loop()
        for served in chosen:
            try:
                await loop.run_in_executor(None, models.load if words[2] == "load" else models.unload, served)
            except QdeployError as error:
                raise RefusedError(400, "load-failed", str(error)) from error
        return _json({})

    async def _predict(self, scope: Scope, headers: Header, receive: Receive) -> Answer:
        top: int | None = 5
        model = version = None
        if scope["query_string"]:
            model, version, top = _query(scope["query_string"])
        self._admit(model, version)
        body = await self._body(headers, receive)
        served, opened = self._service.models.get(model, version)
        c = self._config
        return await self._work(
            PredictTask(served, opened, headers, body, c.max_body_bytes, c.max_images, top), len(body)
        )

    async def _explain(self, scope: Scope, headers: Header, receive: Receive) -> Answer:
        """Show where a model looks: one request at a time, and beside the queue, which does not wait for it."""
        model, version, _ = _query(scope["query_string"])
        body = decompressed(await self._body(headers, receive), headers, self._config.max_body_bytes)
        served, opened = self._service.models.get(model, version)
        if self._service.draining:
            raise draining()
        if self._explaining:
            raise busy(1)
        self._explaining = True
        try:
            document = await asyncio.get_running_loop().run_in_executor(None, explained, served, opened, body)
        finally:
            self._explaining = False
        return _json(document)

    def _admit(self, model: str | None, version: str | None) -> None:
        """Refuse a request for which there is no place, before anything is done for it: many may come."""
        lanes = self._service.lanes
        if lanes.full:
            served, _ = self._service.models.get(model, version)
            served.counters.fail(time.perf_counter_ns())
            raise busy(lanes.capacity)

    async def _body(self, headers: Header, receive: Receive) -> bytes:
        """Return a request's body.

        Of one that is refused the rest is read and dropped, if it is not very large: a client that is still sending
        when the connection is closed does not see the answer.
        """
        most = self._config.max_body_bytes
        if int(headers.get(b"content-length", b"0")) > DROPPED * most:
            raise too_large(most)
        message = await receive()
        if not message.get("more_body"):
            body = message.get("body", b"")
        else:
            parts, size, room = [], 0, True
            while True:
                part = message.get("body", b"")
                size += len(part)
                if size > DROPPED * most:
                    raise too_large(most)
                room = room and size <= most and self._held.add(receive, len(part))
                if room:
                    parts.append(part)
                else:
                    parts.clear()
                    self._held.release(receive)
                if not message.get("more_body"):
                    break
                message = await receive()
            body = b"".join(parts)
            if size > most:
                raise too_large(most)
            if not room:
                raise no_memory(self._held.most)
        if message["type"] == "http.disconnect":
            raise RefusedError(400, "bad-request", "the client went away before its request was complete")
        if len(body) > most:
            raise too_large(most)
        return body

    async def _work(self, task: Task[Answer], size: int) -> Answer:
        """Send a task whose request has so many bytes through the queue and wait for its answer."""
        loop = self._loop = self._loop or asyncio.get_running_loop()
        self._service.look(task)
        try:
            if self._service.draining:
                raise draining()
            lanes, future = self._service.lanes, loop.create_future()
            if lanes.count == 1 and size < CHEAP_BYTES and task.opened.cheap:
                task.done = lambda _: _finish(future)
                lanes.submit_cheap(task, loop)  # they are taken in turn, and late ones are refused then: no timer
                await future
            else:
                await self._in_lane(task, loop, future)
            if task.error is not None:
                raise task.error
        except Exception:
            task.served.counters.fail(task.arrived)
            raise
        self._service.count(task)
        assert task.answer is not None
        return task.answer

    async def _in_lane(self, task: Task[Answer], loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
        """Let a lane's thread work on a task, and wait for it until the deadline."""
        task.done = self._end
        self._futures[task] = future
        try:
            self._service.lanes.submit(task)
            timer = loop.call_later(self._config.deadline_s, self._late, task)
            await future
            timer.cancel()
        finally:
            del self._futures[task]

    def _end(self, task: Task[Answer]) -> None:
        """Hand a task that is done from its lane to the loop; of many at a time only the first wakes it."""
        self._finished.append(task)
        if not self._told:
            self._told = True
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        self._told = False
        while self._finished:
            future = self._futures.get(self._finished.popleft())
            if future is not None:
                _finish(future)

    def _late(self, task: Task[Answer]) -> None:
        future = self._futures.get(task)
        if future is not None and not future.done():
            future.set_exception(late(self._config.deadline_s))

    def _authorize(self, headers: Header) -> None:
        assert self._secret is not None
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._secret):
            what = "this server asks for a token; send it as 'Authorization: Bearer TOKEN'"
            raise RefusedError(401, "unauthorized", what, ((b"www-authenticate", b"Bearer"),))

    def _log(self, scope: Scope, identity: bytes, status: int, begin: float, why: str | None) -> None:
        self._service.event(
            "request",
            level="error" if status >= 500 and status not in (503, 504) else "info",
            request_id=identity.decode("latin-1"),
            method=scope["method"],
            path=scope["path"],
            status=status,
            ms=round((time.perf_counter() - begin) * 1e3, 3),
            **({} if why is None else {"why": why}),
        )


def _require_own_page(headers: Header) -> None:
    """Refuse what another site's page sends from a browser that happens to reach this server."""
    origin, host = headers[b"origin"], headers.get(b"host", b"")
    if origin.partition(b"://")[2] != host:
        text = origin[:80].decode("latin-1")
        raise RefusedError(403, "other-origin", f"requests of the page at {text} are not answered")


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _json(document: Any) -> Answer:
    return Answer(json.dumps(document, allow_nan=False).encode(), JSON_HEADERS)


@lru_cache(maxsize=16)  # a busy server refuses many with the same words
def _told(error: str, reason: str) -> bytes:
    return json.dumps({"error": error, "reason": reason}).encode()


def _allow(method: str, allowed: tuple[str, ...]) -> None:
    if method not in allowed:
        names = ", ".join(allowed)
        more: Headers = ((b"allow", names.encode()),)
        raise RefusedError(405, "unknown-method", f"use {names} here, found {method[:20]}", more)


def _query(text: bytes) -> tuple[str | None, str | None, int | None]:
    """Return the model, version and number of labels that a query names; None of labels are all.

    Raises:
        RefusedError: If it names anything else.
    """
    given = parse_qs(text.decode("latin-1"), keep_blank_values=True)
    unknown = set(given) - {"model", "version", "top"}
    if unknown:
        raise RefusedError(400, "bad-request", f"the query may have model, version, top, not '{min(unknown)[:40]}'")
    top = given.get("top", ["5"])[-1]
    if top != "all" and not (top.isdecimal() and len(top) < 10 and 1 <= int(top) <= 100_000):
        raise RefusedError(400, "bad-request", f"'top' must be a number of labels or all, found '{top[:40]}'")
    model, version = (given[name][-1] if name in given else None for name in ("model", "version"))
    return model, version, None if top == "all" else int(top)


def _identity(headers: Header) -> bytes | None:
    """Return the client's name for its request, if it can be put into a log."""
    given = headers.get(REQUEST_ID)
    return given if given and len(given) <= 64 and given.isascii() and given.decode().isprintable() else None
