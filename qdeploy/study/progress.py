"""The progress interface of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from qdeploy.study.record import Step


class Progress(Protocol):
    """Receives the progress of a sweep."""

    def note(self, text: str) -> None:
        """Something that one should know, such as the plan."""

    def started(self, folder: Path) -> None:
        """The sweep's folder exists: from here on it can be resumed."""

    def phase(self, done: int, total: int, text: str) -> None:
        """So many steps of a phase are done."""

    def ended(self, step: Step, done: int, total: int, left_s: float | None) -> None:
        """A step of a phase has ended; the whole sweep is expected to take so many seconds more."""


class Silent:
    """Shows nothing."""

    def note(self, text: str) -> None:
        """Ignore."""

    def started(self, folder: Path) -> None:
        """Ignore."""

    def phase(self, done: int, total: int, text: str) -> None:
        """Ignore."""

    def ended(self, step: Step, done: int, total: int, left_s: float | None) -> None:
        """Ignore."""
