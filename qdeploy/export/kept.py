"""Results of an export kept for the next one: files in the cache, the newest of each kind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from qdeploy.core.files import write_bytes
from qdeploy.data.places import cache_folder

NEWEST = 20
"""Files of each kind that stay."""
DIGEST = 32
"""Bytes of the checksum that a file begins with."""


def key_of(parts: Iterable[str | bytes]) -> str:
    """Return the hash of everything that a result depends on."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(data)} ".encode() + data)
    return digest.hexdigest()


def read_kept(kind: str, key: str) -> bytes | None:
    """Return what was kept; None if there is nothing, or it is damaged."""
    try:
        data = _file(kind, key).read_bytes()
    except OSError:
        return None
    digest, result = data[:DIGEST], data[DIGEST:]
    return result if hashlib.sha256(result).digest() == digest else None


def keep(kind: str, key: str, data: bytes) -> None:
    """Keep a result; a cache that cannot be written is no reason to fail."""
    path = _file(kind, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, hashlib.sha256(data).digest() + data)
        by_age = sorted(path.parent.iterdir(), key=lambda p: p.stat().st_mtime_ns, reverse=True)
        for old in by_age[NEWEST:]:
            old.unlink()
    except OSError:
        return


def _file(kind: str, key: str) -> Path:
    return cache_folder() / kind / key
