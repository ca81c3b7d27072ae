"""Who is told of a sweep's progress."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from qdeploy.study.record import Done


class Reporter(Protocol):
    """Whoever shows a sweep's progress."""

    def note(self, text: str) -> None:
        """Something that one should know, such as the plan."""

    def started(self, folder: Path) -> None:
        """The sweep's folder exists: from here on it can be resumed."""

    def progress(self, done: int, total: int, text: str) -> None:
        """So many steps of a phase are done."""

    def ended(self, trial: Done, done: int, total: int, left_s: float | None) -> None:
        """A trial of a phase has ended; the whole sweep is expected to take so many seconds more."""


class Silent:
    """A reporter that shows nothing."""

    def note(self, text: str) -> None:
        """Ignore."""

    def started(self, folder: Path) -> None:
        """Ignore."""

    def progress(self, done: int, total: int, text: str) -> None:
        """Ignore."""

    def ended(self, trial: Done, done: int, total: int, left_s: float | None) -> None:
        """Ignore."""
