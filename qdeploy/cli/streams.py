"""The standard streams of a process that was started in any way: with streams closed, or with readers that go away."""

from __future__ import annotations

import io
import os
import sys


class Notes(io.TextIOWrapper):
    """A stderr that never stops the work: once nobody can read it, what is written to it is dropped."""

    def write(self, text: str, /) -> int:
        """Write, or drop."""
        try:
            return super().write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Pass on what is written, or drop it."""
        try:
            super().flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        to_nowhere(self.fileno())
        super().flush()


def open_streams() -> None:
    """Give every standard stream something to read from or write to, and let notes and file names pass."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed by whoever started us; the next file opened would take its number
            to_nowhere(number)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file's name may be any bytes
    if isinstance(sys.stderr, io.TextIOWrapper):
        encoding = sys.stderr.encoding
        sys.stderr = Notes(sys.stderr.detach(), encoding, "backslashreplace", line_buffering=True)


def output_is_dropped() -> bool:
    """Return whether nobody reads stdout any more; from then on what is written to it is dropped."""
    import select

    number = sys.stdout.fileno()
    if hasattr(select, "poll") and not os.path.samestat(os.fstat(number), os.stat(os.devnull)):  # rich has dropped it
        look = select.poll()
        look.register(number, 0)  # that the reader is gone is told in any case
        if not look.poll(0):
            return False
    to_nowhere(number)
    return True


def to_nowhere(number: int) -> None:
    """Let a file descriptor lead to the null device."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
