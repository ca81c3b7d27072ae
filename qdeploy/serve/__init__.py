"""A server for model files: Open Inference Protocol, image files by HTTP, a page, and figures while it runs.

``serve`` blocks until it is told to stop; a ``Server`` can run in a thread and be stopped. ``Client`` needs none of the
server's libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdeploy.serve.collect_config import CollectConfig
    from qdeploy.serve.config import ServeConfig
    from qdeploy.serve.server import Server
    from qdeploy.serve.workers import serve

__all__ = ["CollectConfig", "ServeConfig", "Server", "serve"]
_ROOMS = {"CollectConfig": "collect_config", "ServeConfig": "config", "Server": "server", "serve": "workers"}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        import importlib

        return getattr(importlib.import_module(f"qdeploy.serve.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'qdeploy.serve' has no attribute '{name}'")
