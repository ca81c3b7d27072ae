"""ONNX Runtime for browsers, fetched by npm once for all the tests of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdeploy.core.errors import MissingDependencyError
from qdeploy.export.kits.web_runtime import SCRIPT, WASM, web_runtime
from tests.conftest import once


def web_runtime_folder(shared: Path) -> Path:
    """Return a folder for ``QDEPLOY_ORT_WEB``; the test is skipped where npm fetches nothing."""

    def make() -> Path | str:
        try:
            found = web_runtime()
        except MissingDependencyError as error:
            return str(error)
        folder = shared / "onnxruntime-web"
        folder.mkdir()
        (folder / SCRIPT).write_bytes(found.script)
        (folder / WASM).write_bytes(found.wasm)
        return folder

    made = once(shared, "onnxruntime-web", make)
    if isinstance(made, str):
        pytest.skip(made)
    return made
