"""ONNX Runtime's set-up, started in a thread while Typer is imported: it does not need Python's lock."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from threading import Thread

from qdeploy.core.errors import QdeployError


def start_early(arguments: list[str]) -> None:
    """Begin what the verb of a command line will most likely need."""
    if arguments[:1] == ["predict"] and not any(
        word.startswith(("--engine", "--help", "-h", "--url")) for word in arguments
    ):
        start_onnxruntime()


@cache
def start_onnxruntime() -> None:
    """Let ONNX Runtime set up what all models share, in a thread, once a process."""
    with suppress(ImportError, QdeployError, RuntimeError):  # who opens the model says what is wrong
        from qdeploy.runtime.engines.onnxruntime_library import try_environment

        Thread(target=try_environment).start()
