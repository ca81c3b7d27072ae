"""A real Chromium, and a plain server of static files: what the pages are tested with."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
CAMERA = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
"""A camera that shows a moving pattern, and a user who allows it."""


@contextmanager
def open_chromium() -> Iterator[Browser]:
    """Start this machine's Chromium; the test is skipped where there is none.

    For fixtures of one module: playwright's event loop runs until it ends, and nothing else can run one meanwhile.
    """
    pytest.importorskip("playwright", reason="no playwright")
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)}")
    sandbox = ("--no-sandbox",) if os.name == "posix" and os.geteuid() == 0 else ()  # as root it has none
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*CAMERA, *sandbox])
        try:
            yield browser
        finally:
            browser.close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder as ``python -m http.server`` does; yields its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
