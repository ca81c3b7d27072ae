"""A request that is refused: the status, a code for programs, and a text for people."""

from __future__ import annotations

from qdeploy.core.errors import ImageError, QdeployError

_IMAGE_STATUS = {
    "too-large": 413,
    "too-many-pixels": 413,
    "unsupported-format": 415,
    "not-finite": 500,
    "out-of-memory": 500,
}
Headers = tuple[tuple[bytes, bytes], ...]


class RefusedError(QdeployError):
    """What a client is told instead of an answer.

    Args:
        status: HTTP status: 4xx if the client can mend it, 503 if the server is busy or not ready, 504 if it was late.
        reason: Code for programs, such as ``bad-json``; docs/serve.md lists them.
        what: What happened, and what to do about it.
        headers: Further headers of the answer.
    """

    def __init__(self, status: int, reason: str, what: str, headers: Headers = ()) -> None:
        super().__init__(what)
        self.status = status
        self.reason = reason
        self.headers = headers

    @property
    def document(self) -> dict[str, str]:
        """The answer, as JSON-ready values."""
        return {"error": str(self), "reason": self.reason}


def refused_image(error: ImageError) -> RefusedError:
    """Return the refusal of an image that cannot be classified."""
    return RefusedError(_IMAGE_STATUS.get(error.reason, 400), error.reason, f"image: {error}")


def busy(waiting: int) -> RefusedError:
    """Return the refusal of a request for which there is no place in the queue."""
    what = f"{waiting} requests are waiting already; try again in a second"
    return RefusedError(503, "busy", what, ((b"retry-after", b"1"),))


def no_memory(most: int) -> RefusedError:
    """Return the refusal of a request whose body would be one too many in memory."""
    what = f"the bodies of other requests take {most / 2**20:.4g} MiB already; try again in a second"
    return RefusedError(503, "busy", what, ((b"retry-after", b"1"),))


def late(deadline_s: float) -> RefusedError:
    """Return the refusal of a request that waited too long."""
    return RefusedError(504, "deadline", f"there was no answer within {deadline_s:g} s")


def draining() -> RefusedError:
    """Return the refusal of a request to a server that stops."""
    return RefusedError(503, "draining", "the server is stopping", ((b"retry-after", b"5"), (b"connection", b"close")))
