"""``qdeploy.Client``: the server's answers in Python, with the standard library alone."""

from __future__ import annotations

import socket
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from threading import local
from types import TracebackType
from typing import Any, overload
from urllib.parse import quote, urlencode, urlsplit

from qdeploy.core.errors import ImageError, InputError, QdeployError
from qdeploy.core.image_formats import MAX_FILE_BYTES
from qdeploy.core.json_text import parse_json
from qdeploy.runtime.classifier import Prediction

Image = str | Path | bytes
_IMAGE_REASONS = frozenset(
    {"empty", "too-large", "too-many-pixels", "unsupported-format", "unsupported-mode", "truncated", "damaged"}
    | {"not-finite", "out-of-memory"}
)
_PHASES = ("queue", "decode", "infer")


class ServerError(QdeployError):
    """A server refused a request, or cannot be reached.

    Args:
        what: What happened, in the server's words.
        status: HTTP status; 0 if there was no answer.
        reason: The server's code for it; empty if there was no answer.
    """

    def __init__(self, what: str, status: int = 0, reason: str = "", *, fix: str = "") -> None:
        super().__init__(what, fix=fix)
        self.status = status
        self.reason = reason


class Client:
    """A connection to a ``qdeploy serve``, kept open between calls. Safe to use from several threads.

    Args:
        url: Address of the server, such as ``http://127.0.0.1:8000``.
        token: The server's token, if it asks for one.
        timeout_s: Longest wait for an answer.
        model: Name of the model that answers; by default the server's first.

    Raises:
        InputError: If the address is no HTTP address, or the token cannot be sent.
    """

    def __init__(
        self, url: str, *, token: str | None = None, timeout_s: float = 30.0, model: str | None = None
    ) -> None:
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
            self._host, self._port = parts.hostname, parts.port
            (self._host or "").encode("idna")
        except ValueError as error:
            raise InputError(f"'{url}' is no HTTP address: {error}") from error
        if parts.scheme not in ("http", "https") or not self._host or not url.isprintable() or " " in url:
            raise InputError(f"'{url}' is no HTTP address", fix="give one such as http://127.0.0.1:8000")
        if token and not (token.isascii() and token.isprintable()):
            raise InputError("`token` must have printable ASCII characters only")
        self.url = url
        self._secure = parts.scheme == "https"
        self._path = quote(parts.path.rstrip("/"), safe="/%")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout_s = timeout_s
        self._model = model
        self._mine = local()
        self._all: list[HTTPConnection] = []

    @overload
    def __call__(self, image: Image) -> Prediction: ...

    @overload
    def __call__(self, image: list[Image]) -> list[Prediction]: ...

    def __call__(self, image: Image | list[Image]) -> Prediction | list[Prediction]:
        """Classify one image, a path or a file's bytes, or a list of them.

        Raises:
            ImageError: If an image cannot be read, or the server cannot decode it.
            ServerError: If the server refuses the request for another reason, or does not answer.
        """
        if isinstance(image, list):
            return [self.classify(i)[0] for i in image]
        return self.classify(image)[0]

    def classify(self, image: Image) -> tuple[Prediction, dict[str, float]]:
        """Return the prediction and the server's milliseconds in the queue, in decoding and in inference.

        Raises:
            ImageError: If the image cannot be read, or the server cannot decode it.
            ServerError: If the server refuses the request for another reason, or does not answer.
        """
        query = urlencode({"top": "all", **({"model": self._model} if self._model else {})})
        try:
            answer = self._call("POST", f"/predict?{query}", _file_bytes(image))
        except ServerError as error:
            if error.reason in _IMAGE_REASONS:
                text = str(error).removeprefix("image: ")
                raise ImageError(text, error.reason) from error  # type: ignore[arg-type]
            raise
        try:
            return _prediction(answer)
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(f"{self.url} is no qdeploy server: its answer has no predictions", 200) from error

    def ready(self) -> bool:
        """Return whether the server answers and all its models are loaded."""
        try:
            self._call("GET", "/v2/health/ready")
        except ServerError:
            return False
        return True

    def models(self) -> list[dict[str, Any]]:
        """Return the server's models with their versions and states."""
        found: list[dict[str, Any]] = self._call("POST", "/v2/repository/index", b"{}")
        return found

    def metadata(self, model: str) -> dict[str, Any]:
        """Return the inputs and outputs of a model."""
        found: dict[str, Any] = self._call("GET", f"/v2/models/{quote(model, safe='')}")
        return found

    def report(self) -> dict[str, Any]:
        """Return what serving costs: times, rates, memory, CPU time."""
        found: dict[str, Any] = self._call("GET", "/report")
        return found

    def close(self) -> None:
        """Close all connections; a call opens another."""
        for connection in self._all:
            connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, path: str, body: bytes | None = None) -> Any:
        status, data = self._exchange(method, path, body)
        try:
            answer = parse_json(data)
        except ValueError as error:
            raise ServerError(f"{self.url} is no qdeploy server: its answer is not JSON", status) from error
        if status >= 400:
            what = str(answer.get("error", "")) if isinstance(answer, dict) else ""
            reason = str(answer.get("reason", "")) if isinstance(answer, dict) else ""
            raise ServerError(what or f"{self.url} answers with status {status}", status, reason)
        return answer

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Send a request; once more on a new connection if the server had closed the old one meanwhile."""
        kept = getattr(self._mine, "connection", None)
        fresh = kept is None or kept.sock is None
        if kept is None:
            kind = HTTPSConnection if self._secure else HTTPConnection
            assert self._host is not None
            kept = self._mine.connection = kind(self._host, self._port, timeout=self._timeout_s)
            self._all.append(kept)
        try:
            kept.request(method, self._path + path, body, self._headers)
            response = kept.getresponse()
            return response.status, response.read()
        except (OSError, HTTPException) as error:
            kept.close()
            if not fresh and not isinstance(error, socket.timeout):
                return self._exchange(method, path, body)
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            fix = "is `qdeploy serve` running there?"
            raise ServerError(f"no answer from {self.url}: {why or type(error).__name__}", fix=fix) from error


def _prediction(answer: Any) -> tuple[Prediction, dict[str, float]]:
    """Return what a server's answer says; a KeyError, TypeError or ValueError if it is none."""
    ranked = sorted(answer["predictions"], key=lambda r: r["index"])
    if not ranked:
        raise ValueError("no labels")
    labels, probabilities = tuple(str(r["label"]) for r in ranked), [float(r["probability"]) for r in ranked]
    score, unknown = answer.get("score"), answer.get("unknown", False) is True
    times = {phase: float(answer["latency_ms"][phase]) for phase in _PHASES}
    return Prediction(labels, probabilities, None if score is None else float(score), unknown), times


def _file_bytes(image: Image) -> bytes:
    if isinstance(image, bytes):
        return image
    path = Path(image)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ImageError(f"has more than {MAX_FILE_BYTES // 2**20} MiB", "too-large")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ImageError("no such file", "not-found") from error
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}", "unreadable") from error
