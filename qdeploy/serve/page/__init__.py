"""The page at ``/``: static files beside this one."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_KINDS = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
}
PAGE_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; frame-ancestors 'none'; "
        b"base-uri 'none'; form-action 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)


@cache
def _files() -> dict[str, Path]:
    """Return the files by the paths at which they are served."""
    files = {f"/page/{p.name}": p for p in Path(__file__).parent.iterdir() if p.suffix in _KINDS}
    return {**files, "/": files["/page/index.html"], "/favicon.ico": files["/page/icon.svg"]}


@cache
def _content(path: Path) -> tuple[bytes, bytes]:
    return _KINDS[path.suffix], path.read_bytes()


def page_file(path: str) -> tuple[bytes, bytes] | None:
    """Return the type and the content of the file at a path; None where there is none."""
    file = _files().get(path)
    return None if file is None else _content(file)
