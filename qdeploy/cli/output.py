"""The output of every verb: JSON on stdout, notes and progress on stderr, and missing extras as one line."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qdeploy.core.errors import MissingDependencyError, for_command_line
from qdeploy.core.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SHOWN = 10
"""Problems of a data set that are named; of more their number is said."""
EXTRAS = {
    "torch": "train",
    "safetensors": "train",
    "matplotlib": "train",
    "onnx": "train",
    "onnxscript": "train",
    "uvicorn": "serve",
    "httptools": "serve",
    "prometheus_client": "serve",
    "python_multipart": "serve",
    "paho": "mqtt",
    "ray": "ray",
    "pyarrow": "ray",
    "pandas": "ray",
}
"""Which extra installs a library."""

_QUIET = ContextVar("_QUIET", default=False)


def emit_json(value: Any) -> None:
    """Print one JSON document on one line of stdout."""
    print(json.dumps(value, allow_nan=False), flush=True)


def be_quiet() -> None:
    """Print no notes and no progress from now on, up to the end of this command line."""
    _QUIET.set(True)


def quiet() -> bool:
    """Return whether only the result is wanted."""
    return _QUIET.get()


def note(text: str) -> None:
    """Print a line on stderr, unless only the result is wanted."""
    if not quiet():
        complain(text)


def complain(text: str) -> None:
    """Print a line on stderr that says what went wrong."""
    print(printable(for_command_line(text)), file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Print a line of the result on stdout. Names and labels in it are data: what they hold moves no cursor."""
    print(printable(text), flush=True)


def hint(text: str) -> None:
    """Print below the result what else is worth knowing, unless only the result is wanted."""
    if not quiet():
        say(text)


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


def _plain(text: str) -> str:
    """Return a text that is neither markup nor a terminal's escapes for the bar."""
    return printable(text).replace("[", "\\[")


class Bar:
    """A progress bar on stderr, shown only if stderr is a terminal."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._quiet = quiet()  # asked here, since work in threads may print lines, and a thread does not know
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        if sys.stderr.isatty() and not self._quiet:
            from rich.console import Console
            from rich.progress import Progress

            self._progress = Progress(
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=sys.stdout.isatty(),  # what is piped must not go to the terminal
            )
            self._progress.start()
        return self

    def update(self, done: int, total: int | None, text: str | None = None) -> None:
        """Show that so much is done, of a total if that is known."""
        if self._progress is None:
            return
        if self._task is None:
            self._task = self._progress.add_task(_plain(self.text))
        self._progress.update(self._task, completed=done, total=total, description=_plain(text or self.text))

    def line(self, text: str) -> None:
        """Print a line above the bar, unless only the result is wanted."""
        if self._progress is None:
            if not self._quiet:
                complain(text)
        else:
            self._progress.console.print(printable(for_command_line(text)), highlight=False, markup=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


def field_value(value: Any) -> str:
    """Return the value of a configuration's field as a text."""
    if isinstance(value, Mapping):
        return " ".join(f"{k}={v}" for k, v in value.items())
    return "on" if value is True else f"{value:g}" if isinstance(value, float) else str(value)
