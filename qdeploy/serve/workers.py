"""Several processes on one port, and the one that starts them, stops them and replaces those that die."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qdeploy.serve.config import ServeConfig
from qdeploy.serve.models import Event
from qdeploy.serve.server import Server

RESTARTS = 10
"""Workers that may die in a minute; after one more the server ends."""


def serve(
    given: Sequence[str] = (),
    config: ServeConfig | None = None,
    event: Event | None = None,
    started: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve model files over HTTP until SIGTERM or SIGINT; see ``Server`` for the arguments.

    Raises:
        InputError: If the address cannot be used.
        QdeployError: If a model cannot be opened.
    """
    config = config or ServeConfig()
    Server(given, config, event, started=lambda service, url: started(url)).run()
