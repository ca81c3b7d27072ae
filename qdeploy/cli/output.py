"""What every verb shares: JSON on stdout, notes and progress on stderr, and missing extras as one line."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qdeploy.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.table import Table

EXTRAS = {
    "torch": "train",
    "safetensors": "train",
    "matplotlib": "train",
    "onnx": "train",
    "onnxscript": "train",
    "ray": "ray",
    "pyarrow": "ray",
    "pandas": "ray",
}
"""Which extra installs a library."""


def emit_json(value: Any) -> None:
    """Print one JSON document on one line of stdout."""
    print(json.dumps(value, allow_nan=False), flush=True)


def note(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


def show_table(table: Table) -> None:
    """Print a table on stdout, as wide as it needs when stdout is no terminal."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160).print(table)


@contextmanager
def extra_needed() -> Iterator[None]:
    """Import heavy rooms: a missing extra becomes one line that says what to install.

    What they import stays, so that looking through it for garbage would only take time: a sixth of torch's second.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in EXTRAS:
            raise
        raise MissingDependencyError(
            f"this command needs {library}, which is not installed; run: pip install 'qdeploy[{EXTRAS[library]}]'"
        ) from error
    finally:
        if collecting:
            gc.enable()


class Bar:
    """A progress bar on stderr, shown only if stderr is a terminal."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._progress = Progress(
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=sys.stdout.isatty(),  # what is piped must not go to the terminal
            )
            self._progress.start()
        return self

    def update(self, done: int, total: int, text: str | None = None) -> None:
        """Show that so much is done."""
        if self._progress is None:
            return
        if self._task is None:
            self._task = self._progress.add_task(self.text)
        self._progress.update(self._task, completed=done, total=total, description=text or self.text)

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        if self._progress is None:
            note(text)
        else:
            self._progress.console.print(text, highlight=False, markup=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
