"""How long work tells how far it is, and what it has to say."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with how much is done, and of how much."""
NamedProgress = Callable[[int, int, str], None]
"""The same, and what is going on."""
StepProgress = Callable[[str], Progress]
"""Takes a step's name, and returns what is called with the number of its parts that are done and their total."""
Note = Callable[[str], None]
"""Called with a line for the user."""


def silent(_: str) -> None:
    """Say nothing."""


def no_progress(_: str) -> Progress:
    """Return a progress that shows nothing."""
    return lambda done, total: None
