"""The body of a request: its size before and after decompression, and its JSON."""

from __future__ import annotations

import zlib
from typing import Any

from qdeploy.core.json_text import parse_json
from qdeploy.serve.refusal import RefusedError

Header = dict[bytes, bytes]
"""Headers by their names in lower case."""
_WINDOW = {b"gzip": 16 + zlib.MAX_WBITS, b"x-gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}


def too_large(most: int) -> RefusedError:
    """Return the refusal of a body above the limit."""
    what = f"the body has more than {most / 2**20:.4g} MiB, before or after decompression"
    return RefusedError(413, "too-large", what, ((b"connection", b"close"),))


class HeldBodies:
    """The large bodies in memory: of requests that arrive, wait or are worked on. Together they have a limit.

    Args:
        most: Most bytes of all of them.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._sizes: dict[Any, int] = {}
        self._all = 0

    def add(self, request: Any, count: int) -> bool:
        """Count further bytes of a request, and tell whether there was room for them."""
        if self._all + count > self.most:
            return False
        self._sizes[request] = self._sizes.get(request, 0) + count
        self._all += count
        return True

    def release(self, request: Any) -> None:
        """Forget the bytes of a request, if it has any."""
        self._all -= self._sizes.pop(request, 0)


def decompressed(body: bytes, headers: Header, most: int) -> bytes:
    """Undo a body's Content-Encoding, and never make more bytes than are allowed.

    Raises:
        RefusedError: 415 for an unknown encoding, 413 for too many bytes, 400 for damaged ones.
    """
    encoding = headers.get(b"content-encoding", b"").strip().lower()
    if encoding in (b"", b"identity"):
        return body
    if encoding not in _WINDOW:
        name = encoding[:40].decode("latin-1")
        raise RefusedError(415, "unsupported-encoding", f"Content-Encoding '{name}' is not known; use gzip or deflate")
    try:
        worker = zlib.decompressobj(_WINDOW[encoding])
        plain = worker.decompress(body, most + 1)
    except zlib.error as error:
        raise RefusedError(400, "bad-encoding", f"the body is not valid {encoding.decode()}: {error}") from error
    if len(plain) > most:
        raise too_large(most)
    if not worker.eof or worker.unused_data:
        raise RefusedError(400, "bad-encoding", f"the {encoding.decode()} body is cut off or followed by other bytes")
    return plain


def json_object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        RefusedError: 400 if it is none, holds NaN or infinity, or is nested too deeply.
    """
    try:
        value = parse_json(text)
    except ValueError as error:
        raise RefusedError(400, "bad-json", f"the request is not JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise RefusedError(400, "bad-json", f"the request must be a JSON object, found a {type(value).__name__}")
    return value
