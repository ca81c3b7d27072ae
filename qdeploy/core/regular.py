"""Reading of files that somebody else has named: they may be devices, pipes, or without end."""

from __future__ import annotations

import errno
import os
import stat

EXHAUSTED = (errno.EMFILE, errno.ENFILE)
"""Errors of a process, or a machine, that has too many files open: no fault of the file's that is to be read."""


class NotRegularError(OSError):
    """What was to be read is no regular file; its text says what it is."""


class TooLargeError(OSError):
    """A file has more bytes than are read."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"has {size_bytes:,} bytes")
        self.size_bytes = size_bytes


_KINDS = {
    stat.S_IFDIR: "is a folder, not an image",
    stat.S_IFIFO: "is a pipe, not a regular file",
    stat.S_IFCHR: "is a device, not a regular file",
    stat.S_IFBLK: "is a device, not a regular file",
    stat.S_IFSOCK: "is a socket, not a regular file",
}


def read_regular(path: str | os.PathLike[str], most_bytes: int) -> bytes:
    """Return a regular file's content; nothing else is opened, so that nothing waits or never ends.

    Args:
        path: The file, or a link to it.
        most_bytes: How large it may be.

    Raises:
        NotRegularError: If it is a folder, a pipe, a device or a socket.
        TooLargeError: If it has more bytes.
        OSError: If it is not there or cannot be read.
        ValueError: If no file can have such a name.
    """
    _require_regular(os.stat(path))
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb", buffering=0) as stream:
        state = os.fstat(handle)
        _require_regular(state)  # it may have been exchanged since
        if state.st_size > most_bytes:
            raise TooLargeError(state.st_size)
        parts, left = [], most_bytes + 1
        while left and (part := stream.read(min(left, max(state.st_size + 1, 65536)))):
            parts.append(part)  # a file that grows meanwhile ends all the same
            left -= len(part)
    if not left:
        raise TooLargeError(most_bytes + 1)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _require_regular(state: os.stat_result) -> None:
    if not stat.S_ISREG(state.st_mode):
        raise NotRegularError(_KINDS.get(stat.S_IFMT(state.st_mode), "is not a regular file"))
