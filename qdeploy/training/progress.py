"""The progress interface of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from qdeploy.core.run_folder import RunRecord

Row = dict[str, Any]


class Progress(Protocol):
    """Receives the progress of a training run."""

    def reading(self, done: int, total: int) -> None:
        """So many images of the data set are decoded."""

    def started(self, record: RunRecord, folder: Path) -> None:
        """Training begins, or goes on; the record describes the run."""

    def batch(self, epoch: int, done: int, total: int) -> None:
        """So many batches of an epoch, counted from 0, are done."""

    def epoch(self, row: Row) -> None:
        """An epoch is done; the row is its line of ``log.csv``."""

    def note(self, text: str) -> None:
        """Something happened that one should know, such as a return to earlier weights."""


class Silent:
    """Shows nothing."""

    def reading(self, done: int, total: int) -> None:
        """Ignore."""

    def started(self, record: RunRecord, folder: Path) -> None:
        """Ignore."""

    def batch(self, epoch: int, done: int, total: int) -> None:
        """Ignore."""

    def epoch(self, row: Row) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""
