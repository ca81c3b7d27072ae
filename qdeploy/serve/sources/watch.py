"""A watched folder: every image that comes into it is classified once, as soon as it is complete."""

from __future__ import annotations

import os
import stat
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from threading import Thread

from qdeploy.core.image_formats import MAX_FILE_BYTES, SUFFIXES
from qdeploy.serve.service import guarded
from qdeploy.serve.sources.answers import Record, Stamp, record, with_error
from qdeploy.serve.sources.desk import Desk, StoppingError

SOURCE = "watch"
LOOK_S = 0.25
"""Time from one look at what is new to the next, and, where that takes no time, into the folder."""
LISTING_SHARE, READING_SHARE = 100, 200
"""The time from one listing to the next, and from one reading of all files' sizes to the next, in multiples of the CPU
time that they take: together 1.5 % of a core, however large the folder and slow the device."""
PATIENCE_S = 3.0
"""How long a damaged image must have been unchanged to be called damaged: its writer may only be slow."""
MAYBE_UNFINISHED = frozenset({"damaged", "truncated", "empty", "unreadable"})
FORGOTTEN = 100_000
"""Answered files that are remembered although they are not there: a drive may come back."""


@dataclass
class _Candidate:
    """An image without an answer."""

    stamp: Stamp
    since: float
    """When it was first seen in this state, in seconds of the monotonic clock."""
    patience_s: float = LOOK_S
    """How long it must stay as it is."""


class Remembered:
    """Which files have an answer: all that are there, and the last ``FORGOTTEN`` of the others."""

    def __init__(self) -> None:
        self._marks: dict[int, None] = {}  # the last seen at the end

    def fill(self, stamps: Iterable[Stamp]) -> None:
        """Remember files by their answers of earlier, of which there may be any number."""
        recent: deque[Stamp] = deque()
        for stamp in stamps:
            recent.append(stamp)
            if len(recent) > FORGOTTEN and os.path.exists((old := recent.popleft()).path):
                self.add(old)
        for stamp in recent:
            self.add(stamp)

    def add(self, stamp: Stamp) -> None:
        """Remember a file as the last seen."""
        for mark in stamp.marks():
            self._marks.pop(mark, None)
            self._marks[mark] = None

    def __contains__(self, stamp: Stamp) -> bool:
        return any(mark in self._marks for mark in stamp.marks())

    def forget(self, present: int) -> None:
        """Forget those that were seen longest ago, where so many are there."""
        spare = len(self._marks) - 2 * (present + FORGOTTEN)
        if spare > 0:
            self._marks = dict.fromkeys(list(self._marks)[spare:])


class Folder:
    """What is new and complete in a folder and all below it.

    Hidden files and folders are left out, and so is what has another suffix than an image; links to folders are not
    followed.
    """

    def __init__(self, path: str, remembered: Remembered) -> None:
        self.path = path
        self.problem: OSError | None = None
        """Why a part of the folder could not be listed at the last look."""
        self._remembered = remembered
        self._answered: dict[str, int] = {}
        """The inode of each file that is there and has an answer, by its path."""
        self._candidates: dict[str, _Candidate] = {}
        self._list_next = self._read_next = 0.0

    def look(self) -> list[_Candidate]:
        """Return the images that have no answer and have not changed for a while, the oldest first."""
        if time.monotonic() >= self._list_next:
            self._list()
        else:
            known = self._candidates
            self._candidates = {}
            for path in known:
                self._consider(path, known)
        now = time.monotonic()
        ready = [c for c in self._candidates.values() if now - c.since >= c.patience_s]
        return sorted(ready, key=lambda c: (c.stamp.mtime_ns, c.stamp.path))

    def leave(self) -> int:
        """Take all images that are there now for answered, and return their number."""
        self.look()
        for candidate in self._candidates.values():
            self._remembered.add(candidate.stamp)
        return len(self._candidates)

    def _list(self) -> None:
        """List all, and at times read every file's size and time: one may have been written over in its place."""
        self.problem = None
        cpu_s = time.thread_time()
        read_all = time.monotonic() >= self._read_next
        answered, self._answered = self._answered, {}
        known, self._candidates = self._candidates, {}
        for entry in self._walk(self.path):
            path, inode = entry.path, entry.inode()
            if (not read_all and answered.get(path) == inode) or self._consider(path, known):
                self._answered[path] = inode
        now, cpu_s = time.monotonic(), time.thread_time() - cpu_s
        if read_all:
            self._read_next = now + READING_SHARE * cpu_s
            self._remembered.forget(len(self._answered))
        else:
            self._list_next = now + LISTING_SHARE * cpu_s

    def _consider(self, path: str, known: dict[str, _Candidate]) -> bool:
        """Return whether a file has an answer; one that has none becomes a candidate, or stays it."""
        stamp = _stamp(path)
        if stamp is None:
            return False
        if stamp in self._remembered:
            self._remembered.add(stamp)
            return True
        former = known.get(path)
        same = former is not None and former.stamp == stamp
        self._candidates[path] = former if former and same else _Candidate(stamp, time.monotonic())
        return False

    def _walk(self, folder: str) -> Iterator[os.DirEntry[str]]:
        waiting = [folder]
        while waiting:
            path = waiting.pop()
            try:
                with os.scandir(path) as entries:
                    for entry in entries:
                        name = entry.name
                        if name[0] == ".":
                            continue
                        if name[name.rfind(".") :].lower() in SUFFIXES and _is_file(entry):
                            yield entry
                        elif entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
            except OSError as error:
                if path == folder or not isinstance(error, FileNotFoundError):  # others below may go at any time
                    self.problem = error


class Watch:
    """Looks into a folder again and again, in its own thread."""

    def __init__(self, path: str, desk: Desk, remembered: Remembered, new_only: bool = False) -> None:
        self.path = os.path.abspath(path)
        self._desk = desk
        self._remembered = remembered
        self._folder = Folder(self.path, remembered)
        self._new_only = new_only
        self._problem: str | None = None
        self._thread = Thread(target=self._run, name=f"watch {self.path}", daemon=True)

    def start(self) -> None:
        """Begin."""
        left = self._folder.leave() if self._new_only else 0
        self._desk.event("watching", folder=self.path, **({"left_alone": left} if self._new_only else {}))
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the end after the desk was told to stop."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._desk.stop.wait(LOOK_S):
            ready = self._folder.look()
            self._tell()
            for candidate in ready:
                if self._desk.stop.is_set():
                    return
                candidate.patience_s *= 2  # should it come here again
                guarded(partial(self._answer, candidate), self._desk.event)

    def _tell(self) -> None:
        """Log once that the folder cannot be read, and once that it can."""
        error = self._folder.problem
        problem = f"{error.filename}: {error.strerror}" if error else None
        if problem != self._problem:
            if problem:
                self._desk.event("folder-unreadable", level="error", folder=self.path, why=problem)
            else:
                self._desk.event("folder-readable", folder=self.path)
        self._problem = problem

    def _answer(self, candidate: _Candidate) -> None:
        answer = self._asked(candidate)
        if answer is None:
            return
        if answer.get("reason") in MAYBE_UNFINISHED and candidate.patience_s < PATIENCE_S:
            candidate.patience_s = PATIENCE_S
            return
        try:
            self._desk.hand_out(answer, candidate.stamp)
        except StoppingError:
            return
        self._remembered.add(candidate.stamp)

    def _asked(self, candidate: _Candidate) -> Record | None:
        """Return the answer to an image; None if it is there no more, or has changed, or the server stops."""
        path = candidate.stamp.path
        problem, reason = "", ""
        try:
            data = _read(candidate.stamp)
        except FileNotFoundError:
            return None
        except OSError as error:
            data, problem, reason = b"", f"image: cannot be read: {error.strerror or error}", "unreadable"
        if data is None:
            return None
        if not reason and len(data) > MAX_FILE_BYTES:
            problem, reason = f"image: exceeds {MAX_FILE_BYTES // 2**20} MiB", "too-large"
        if reason:
            return with_error(record(SOURCE, path, *self._desk.model), problem, reason)
        try:
            return self._desk.ask(SOURCE, path, data, patient=True)
        except StoppingError:
            return None


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself
        return False


def _stamp(path: str) -> Stamp | None:
    """Return the state of a file; None if it is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return Stamp(path, found.st_size, found.st_mtime_ns, found.st_ino)


def _read(stamp: Stamp) -> bytes | None:
    """Return a file's content, cut off above the limit; None if it is not in that state, or no file any more."""
    with open(stamp.path, "rb", opener=_without_waiting) as stream:
        before = os.fstat(stream.fileno())
        if not stat.S_ISREG(before.st_mode):
            return None
        data = stream.read(MAX_FILE_BYTES + 1)
        after = os.fstat(stream.fileno())
    return data if (after.st_size, after.st_mtime_ns) == (stamp.size_bytes, stamp.mtime_ns) else None


def _without_waiting(path: str, flags: int) -> int:
    """Open a file that may have become a pipe, without waiting for its writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
