"""File operations of a process: counted, written down, killed at the n-th, or made to fail.

Python tells an audit hook of every opening, renaming and removing before it is done, whoever asks for it, and what the
hook raises is raised in its place. ``os.fsync`` is not told of and is wrapped. Nothing of qdeploy is changed. A hook
cannot be taken off again: this is for processes that are forked for it.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
NAMED = {
    "os.rename": "rename",
    "os.remove": "remove",
    "os.mkdir": "mkdir",
    "os.rmdir": "rmdir",
    "os.truncate": "truncate",
    "os.chmod": "chmod",
    "os.link": "link",
    "os.symlink": "link",
}
"""Audit events that change files, by the word for them here. What ``os.replace`` does is told as ``os.rename``."""


@dataclass(frozen=True)
class Operation:
    """One change of a file or folder."""

    what: str
    """open, fsync, exchange, or a word of ``NAMED``."""
    path: str
    target: str = ""
    """The new name, of a renaming."""


@dataclass(frozen=True)
class Plan:
    """What is to happen at which operation of a process."""

    at: int = -1
    """Counted from 0; -1: at none."""
    do: Literal["kill", "fail"] = "kill"
    error: int = 0
    """The number of the error, as errno has it."""
    only: str = ""
    """Count operations of this kind alone."""


def watch(folder: Path, plan: Plan, trace: Path | None = None) -> None:
    """Follow a plan in this process from now on.

    Args:
        folder: Operations below it count; others are none of ours.
        plan: What is to happen.
        trace: Where every operation is written down, one a line, before it is done.
    """
    root, own = os.path.realpath(folder), os.getpid()
    log = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666) if trace else None
    count, busy = 0, False

    def seen(operation: Operation) -> None:
        nonlocal count
        if os.getpid() != own or (plan.only and operation.what != plan.only):
            return
        if log is not None:
            os.write(log, "\t".join((operation.what, operation.path, operation.target)).encode() + b"\n")
        count += 1
        if count - 1 == plan.at:
            if plan.do == "kill":
                os.kill(own, signal.SIGKILL)
            raise OSError(plan.error, os.strerror(plan.error), operation.path)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal busy
        if busy:
            return
        busy = True
        try:
            operation = _operation(event, arguments)
            if operation and any(p.startswith(root + os.sep) for p in (operation.path, operation.target)):
                seen(operation)
        finally:
            busy = False

    flush = os.fsync

    def fsync(handle: Any) -> None:
        number = handle if isinstance(handle, int) else handle.fileno()
        path = os.readlink(f"/proc/self/fd/{number}")
        if path == root or path.startswith(root + os.sep):
            seen(Operation("fsync", path))
        flush(handle)

    os.fsync = fsync  # type: ignore[assignment]
    sys.addaudithook(hook)


def read_trace(trace: Path) -> list[Operation]:
    """Return the operations that were written down."""
    return [Operation(*line.split("\t")) for line in trace.read_text().splitlines()]


def out_of_order(operations: list[Operation]) -> list[str]:
    """Return what a loss of power could turn over: names given before the contents, or never, were on the disk.

    The rule is: write to another name, fsync it, rename it, fsync the folder. Of a folder that is renamed, all that was
    written in it must be on the disk.
    """
    dirty: set[str] = set()
    renamed: dict[str, str] = {}
    faults = []
    for operation in operations:
        if operation.what == "open":
            dirty.add(operation.path)
        elif operation.what == "fsync":
            dirty.discard(operation.path)
            renamed = {target: parent for target, parent in renamed.items() if parent != operation.path}
        elif operation.what == "remove":
            dirty.discard(operation.path)
        elif operation.what == "exchange":  # of the folder that was being made with the one that stood
            inside = [d for d in dirty if ".part" + os.sep in d]
            faults += [f"{d} takes its place before it is on the disk" for d in inside]
            dirty -= set(inside)
        elif operation.what == "rename":
            inside = [d for d in dirty if d == operation.path or d.startswith(operation.path + os.sep)]
            faults += [f"{d} is renamed before it is on the disk" for d in inside]
            dirty -= set(inside)
            renamed[operation.target] = os.path.dirname(operation.target)
    return faults + [f"the folder of {target} is not written to the disk after the renaming" for target in renamed]


def _operation(event: str, arguments: tuple[Any, ...]) -> Operation | None:
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, int) or path is None or not isinstance(flags, int) or not flags & WRITES:
            return None
        return Operation("open", _whole(path))
    if event == "ctypes.dlsym" and arguments[1] == "renameat2":
        return Operation("exchange", os.getcwd() + os.sep)
    if event not in NAMED or isinstance(arguments[0], int):
        return None
    target = _whole(arguments[1]) if NAMED[event] == "rename" else ""
    return Operation(NAMED[event], _whole(arguments[0]), target)


def _whole(path: Any) -> str:
    return os.path.abspath(os.fsdecode(path))
