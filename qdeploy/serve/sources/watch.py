"""A watched folder: every image that comes into it is classified once, as soon as it is complete."""

from __future__ import annotations

import os
import stat
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from threading import Thread

from qdeploy.core.errors import PASSING
from qdeploy.core.image_formats import MAX_FILE_BYTES, NO_IMAGE, is_image_file, is_image_name
from qdeploy.core.listing import Found, Kind, walk
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
AGAIN_S = 10.0
"""Time from one try of an image that cannot be read to the next: a permission may be given, a device recover."""
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
    told: bool = False
    """Whether it was said that it cannot be read; it is tried again."""


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

    What is an image, and what is left out, is told as ``listing.walk`` does.
    """

    def __init__(self, path: str, remembered: Remembered) -> None:
        self.path = path
        self.problem: Found | None = None
        """A folder that could not be listed at the last look."""
        self.lost: dict[str, str] = {}
        """What else may be an image or hold some and cannot be had, by its path, with the reason."""
        self.left_out: dict[str, str] = {}
        """The first file of each suffix that is no image, by the suffix."""
        self._remembered = remembered
        self._answered: dict[str, int] = {}
        """The inode of each file that is there and has an answer, by its path."""
        self._candidates: dict[str, _Candidate] = {}
        self._kinds: dict[str, tuple[Stamp, bool]] = {}
        """Whether the content of a file without an image's suffix is an image's, in the state in which it was seen."""
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
        kinds, self._kinds = self._kinds, {}
        self.lost = {}
        try:
            for found in walk(self.path, partial(self._is_image, kinds), inodes=True):
                path, inode = found.path, found.inode
                if found.kind is not Kind.IMAGE:
                    self._leave_out(found)
                elif (not read_all and answered.get(path) == inode) or self._consider(path, known):
                    self._answered[path] = inode
        except OSError as error:  # too many files are open: the next look may see more
            self.problem = Found(self.path, Kind.LOST, f"cannot be read: {error.strerror}", "unreadable")
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

    def _leave_out(self, found: Found) -> None:
        is_folder = not os.path.islink(found.path) and not os.path.isfile(found.path)
        if found.kind is Kind.OTHER:
            self.left_out.setdefault(os.path.splitext(found.path)[1].lower(), found.path)
        elif found.kind is Kind.LINKED or found.reason == "not-a-file" or not is_folder:
            self.lost[found.path] = found.why
        elif found.path == self.path or found.reason != "not-found":  # others below may go at any time
            self.problem = found

    def _is_image(self, kinds: dict[str, tuple[Stamp, bool]], entry: os.DirEntry[str]) -> bool:
        """Tell a file's kind; its content is read once in each of its states."""
        if is_image_name(entry.name):
            return True
        stamp = _stamp(entry.path)
        if stamp is None:
            return False
        former = kinds.get(entry.path)
        known = former if former and former[0] == stamp else (stamp, is_image_file(entry.path))
        self._kinds[entry.path] = known
        return known[1]


class Watch:
    """Looks into a folder again and again, in its own thread."""

    def __init__(self, path: str, desk: Desk, remembered: Remembered, new_only: bool = False) -> None:
        self.path = os.path.abspath(path)
        self._desk = desk
        self._remembered = remembered
        self._folder = Folder(self.path, remembered)
        self._new_only = new_only
        self._problem: str | None = None
        self._told: dict[str, str] = {}
        self._told_suffixes = 0
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
        """Log once that the folder cannot be read, and once that it can; and once each what is left out."""
        lost = self._folder.problem
        problem = f"{lost.path}: {lost.why}" if lost else None
        if problem != self._problem:
            if problem:
                self._desk.event("folder-unreadable", level="error", folder=self.path, why=problem)
            else:
                self._desk.event("folder-readable", folder=self.path)
        self._problem = problem
        for path, why in self._folder.lost.items():
            if self._told.get(path) != why:
                self._desk.event("left-out", level="warning", path=path, why=why)
        self._told = dict(self._folder.lost)
        for suffix in list(self._folder.left_out)[self._told_suffixes :]:
            path = self._folder.left_out[suffix]
            self._desk.event("left-out", suffix=suffix, path=path, why=f"{NO_IMAGE}, as all such files will be")
        self._told_suffixes = len(self._folder.left_out)

    def _answer(self, candidate: _Candidate) -> None:
        answer = self._asked(candidate)
        if answer is None:
            return
        if answer.get("reason") in MAYBE_UNFINISHED and candidate.patience_s < PATIENCE_S:
            candidate.patience_s = PATIENCE_S
            return
        passing = answer.get("reason") in PASSING
        if not (passing and candidate.told):
            try:
                self._desk.hand_out(answer, candidate.stamp)
            except StoppingError:
                return
        if passing:
            candidate.told, candidate.patience_s = True, time.monotonic() - candidate.since + AGAIN_S
        else:
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
