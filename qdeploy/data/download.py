"""Downloads, resumed after an interruption and checked before they get their final name."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from qdeploy.core.errors import DataError
from qdeploy.core.files import BusyError, locked
from qdeploy.core.progress import Progress


class NotHereError(DataError):
    """A file would have to be downloaded, and must not be."""

    def __init__(self, url: str) -> None:
        super().__init__(f"{url} is not on this machine")
        self.url = url


_allowed: ContextVar[bool] = ContextVar("downloads", default=True)


@contextmanager
def without_downloads() -> Iterator[None]:
    """Within it, ``fetch`` raises ``NotHereError`` in place of downloading."""
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


CHUNK_BYTES = 2**20
TIMEOUT_S = 60.0
"""Seconds without data after which a download is given up."""


@dataclass(frozen=True, kw_only=True)
class Checksum:
    """What a published file must hash to."""

    kind: Literal["md5", "sha256"]
    """MD5 where the publisher gives nothing better: it tells damage, and an attacker less well."""
    hex: str
    uncompressed: bool = False
    """Whether the hash is that of a gzip file's contents: the same contents may be compressed differently."""

    def of(self, path: Path) -> str:
        """Return a file's own checksum; ``not gzip`` where it cannot be uncompressed."""
        digest = hashlib.new(self.kind, usedforsecurity=False)
        try:
            with gzip.open(path) if self.uncompressed else path.open("rb") as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    digest.update(chunk)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            return "not gzip"
        return digest.hexdigest()


def fetch(url: str, target: Path, checksum: Checksum, manual: str, progress: Progress | None = None) -> None:
    """Download a file; until it is complete and checked it is called ``<name>.part``.

    A ``.part`` that is there is continued if the server can; else it begins anew.

    Args:
        url: Where it is.
        target: What it becomes; nothing happens if it exists.
        checksum: Checked at the end; a file that has another one is removed.
        manual: What a user without network can do, e.g. ``put the file into ./data``.
        progress: Called with bytes done and in total.

    Raises:
        DataError: If it cannot be fetched or is not the published file.
    """
    if target.is_file():
        return
    if not _allowed.get():
        raise NotHereError(url)
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(part.with_name(f".{target.name}.lock"), wait=False):
            _transfer(url, part, progress)
            found = checksum.of(part)
            if found != checksum.hex:
                part.unlink()
                raise DataError(
                    f"{url} is not the published file (checksum mismatch: {checksum.kind} {found}, expected "
                    f"{checksum.hex}); nothing was kept; run again, or {manual}"
                )
            os.replace(part, target)
    except BusyError as error:
        raise DataError(f"another process is fetching {target.name} into {target.parent}; wait for it") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        kept = part.stat().st_size if part.is_file() else 0
        again = f"run again to resume after {kept / 2**20:.1f} MiB" if kept else "run again with a network"
        raise DataError(
            f"{target.name} is not on this machine and could not be fetched from {url} ({_reason(error)}); "
            f"{again}, or {manual}"
        ) from error


def _transfer(url: str, part: Path, progress: Progress | None) -> None:
    """Write the rest of a file, or all of it, to its part."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return  # it was complete and not yet checked
        part.unlink()  # longer than the file: another one
        _transfer(url, part, progress)
        return
    with answer:
        start = have if _continues(answer, have) else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else 0
        with part.open("ab") as stream:
            stream.truncate(start)
            _copy(answer, stream, start, total, progress)
            size = stream.tell()
    if total and size != total:
        raise OSError(f"the connection broke off at {size} of {total} bytes")


def _continues(answer: http.client.HTTPResponse, have: int) -> bool:
    """Tell whether an answer holds the bytes after those at hand; many servers ignore the wish and send all."""
    span = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range") or "")
    return answer.status == http.HTTPStatus.PARTIAL_CONTENT and span is not None and int(span[1]) == have


def _copy(
    answer: http.client.HTTPResponse, stream: IO[bytes], done: int, total: int, progress: Progress | None
) -> None:
    while chunk := answer.read(CHUNK_BYTES):
        stream.write(chunk)
        done += len(chunk)
        if progress:
            progress(done, total)
    stream.flush()
    os.fsync(stream.fileno())


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return (str(reason or error) or type(error).__name__).splitlines()[0]
