"""A real HTTP server on this machine that can break off and resume."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Web:
    """Files by path, and how to misbehave."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.break_after: int | None = None
        self.ranges = True
        self.asked: list[str | None] = []
        """The Range header of every request."""
        self.url = ""


@contextmanager
def serving(folder: Path | None = None) -> Iterator[Web]:
    """Serve a folder's files and what is added to ``Web.files``."""
    web = Web()
    if folder:
        web.files = {p.name: p.read_bytes() for p in folder.iterdir()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wish = self.headers.get("Range")
            web.asked.append(wish)
            data = web.files.get(self.path.strip("/"))
            if data is None:
                self.send_error(404)
                return
            start = int(wish.removeprefix("bytes=").removesuffix("-")) if wish and web.ranges else 0
            if wish and web.ranges and start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            self.wfile.write(data[start : web.break_after])

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        web.url = f"http://127.0.0.1:{http.server_port}/"
        yield web
        http.shutdown()
