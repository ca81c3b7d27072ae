"""Types of the callbacks by which long work reports progress and notes."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the units of work that are done, and their total."""
NamedProgress = Callable[[int, int, str], None]
"""Called with the units of work that are done, their total, and what is being done."""
StepProgress = Callable[[str], Progress]
"""Takes a step's name, and returns the callback for that step's progress."""
Note = Callable[[str], None]
"""Called with a line for the user."""


def silent(_: str) -> None:
    """Ignore a note."""


def no_progress(_: str) -> Progress:
    """Return a callback that ignores a step's progress."""
    return lambda done, total: None
