"""Answers of watched folders and cameras: as JSON-ready values, and in a file that only grows.

The file is also what is remembered of a watched folder: an image and its answer are then one line, which is there or
not, and no second file can say otherwise after a crash.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from qdeploy.core.errors import PASSING, InputError
from qdeploy.core.files import BusyError, locked
from qdeploy.core.json_text import parse_json
from qdeploy.runtime.classifier import Prediction
from qdeploy.serve.models import Event
from qdeploy.serve.stats import PHASES

Record = dict[str, Any]
COLUMNS = (
    *("time", "source", "image", "model", "version", "label", "probability", "predictions"),
    *(f"{phase}_ms" for phase in PHASES),
    *("error", "reason", "size_bytes", "mtime_ns", "inode"),
)
HEADER = (",".join(COLUMNS) + "\n").encode()
_BEGINNING = b'{"time": "'
_LONGEST = 2**20
"""Bytes of a line that is looked for at the end of a file."""


class Stamp(NamedTuple):
    """A file in one state: what tells it from every other image."""

    path: str
    size_bytes: int
    mtime_ns: int
    inode: int

    def marks(self) -> tuple[int, ...]:
        """Return numbers by any of which it is known again: one by its path, one that outlives renaming."""
        by_path = hash((self.path, self.size_bytes, self.mtime_ns))
        return (by_path, hash((self.inode, self.size_bytes, self.mtime_ns))) if self.inode else (by_path,)


def record(source: str, image: str, model: str, version: int) -> Record:
    """Return what every answer begins with."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    return {"time": now, "source": source, "image": image, "model": model, "version": str(version)}


def with_prediction(begun: Record, prediction: Prediction, times: dict[str, float], top: int) -> Record:
    """Return an answer with labels, probabilities and the milliseconds of each phase."""
    best = [{"label": r.label, "index": r.index, "probability": round(r.probability, 6)} for r in prediction.top(top)]
    return {
        **begun,
        **prediction.told(),
        "label": prediction.label,
        "probability": best[0]["probability"],
        "predictions": best,
        "latency_ms": {phase: round(ms, 4) for phase, ms in times.items()},
    }


def with_error(begun: Record, error: str, reason: str) -> Record:
    """Return an answer that says why there is none."""
    return {**begun, "error": error, "reason": reason}


def with_stamp(answer: Record, stamp: Stamp) -> Record:
    """Return an answer with the state of its file, by which that is known again."""
    return {**answer, "size_bytes": stamp.size_bytes, "mtime_ns": stamp.mtime_ns, "inode": stamp.inode}


class AnswerFile:
    """A ``.jsonl`` or ``.csv`` file to which answers are added, each at once and as a whole line.

    What a crash has left of a last line is removed when the file is opened; its image is then classified again. A file
    that was moved away is begun anew. Safe to use from several threads; other processes are kept out.
    """

    def __init__(self, path: Path, event: Event) -> None:
        """Open the file.

        Raises:
            InputError: If it cannot be written, is not such a file, or another process writes it.
        """
        self.path = path
        self._event = event
        self._csv = path.suffix == ".csv"
        self._lock = Lock()
        self._stack = ExitStack()
        try:
            self._stack.enter_context(locked(path.with_name(f".{path.name}.lock"), wait=False))
            self._file = self._opened()
            self._repair()
        except BusyError as error:
            raise InputError(f"another process adds to {path}", fix="give each its own `answers`") from error
        except OSError as error:
            self._stack.close()
            raise InputError(f"cannot write the answers to {path}: {error.strerror or error}") from error
        except InputError:
            self.close()
            raise

    def stamps(self) -> Iterator[Stamp]:
        """Return the files that have an answer, in the order of the answers; of one that is tried again it is none."""
        damaged = 0
        with self.path.open("rb") as stream:
            for line in stream:
                if not self._csv and b'"mtime_ns"' not in line:
                    continue
                try:
                    stamp = self._stamp(line)
                except (ValueError, KeyError, TypeError, csv.Error):
                    damaged += 1
                    continue
                if stamp:
                    yield stamp
        if damaged:
            self._event("answers-damaged", level="warning", file=str(self.path), lines=damaged)

    def add(self, answer: Record) -> None:
        """Add an answer, or nothing.

        Raises:
            OSError: If it cannot be written.
        """
        line = _row(answer) if self._csv else (json.dumps(answer) + "\n").encode()
        with self._lock:
            self._follow()
            self._write(line)

    def close(self) -> None:
        """Bring everything to the disk and let other processes in."""
        with self._lock, self._stack:
            if self._file >= 0:
                file, self._file = self._file, -1
                try:
                    os.fsync(file)
                finally:
                    os.close(file)

    def _opened(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)

    def _follow(self) -> None:
        """Begin the file anew if somebody has moved or removed it."""
        own = os.fstat(self._file)
        try:
            found = self.path.stat()
        except FileNotFoundError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino):
            file, self._file = self._file, self._opened()
            os.close(file)
        if self._csv and not os.fstat(self._file).st_size:
            self._write(HEADER)

    def _write(self, line: bytes) -> None:
        end = os.fstat(self._file).st_size
        written = 0
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self._file, end)
            raise

    def _repair(self) -> None:
        size = os.fstat(self._file).st_size
        with self.path.open("rb") as stream:
            if self._csv and not HEADER.startswith(stream.read(len(HEADER))):
                raise self._not_ours("its columns are others")
            stream.seek(max(0, size - _LONGEST))
            rest = stream.read().rpartition(b"\n")[2]
        if not rest:
            return
        torn = rest.rstrip(b"\0")  # what a power cut leaves of a block that was not written yet
        if not self._csv and torn and not torn.startswith(_BEGINNING[: len(torn)]):
            raise self._not_ours("its last line is not one of an answer")
        if not self._csv and torn.endswith(b"}") and _is_json(torn):
            self._write(b"\n")  # an editor has saved it so
            return
        os.ftruncate(self._file, size - len(rest))
        self._event("answers-repaired", level="warning", file=str(self.path), bytes=len(rest))

    def _not_ours(self, why: str) -> InputError:
        return InputError(f"{self.path} holds something else than answers: {why}", fix="give another file as `answers`")

    def _stamp(self, line: bytes) -> Stamp | None:
        if not self._csv:
            values = parse_json(line)
            if values.get("reason") in PASSING:
                return None
            return Stamp(values["image"], values["size_bytes"], values["mtime_ns"], values["inode"])
        (row,) = csv.reader([line.decode("utf-8", "surrogateescape")])
        path, *numbers = row[COLUMNS.index("image")], *row[-3:]
        if not numbers[0] or row[0] == COLUMNS[0] or row[COLUMNS.index("reason")] in PASSING:
            return None
        return Stamp(path, *map(int, numbers))


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True


def _row(answer: Record) -> bytes:
    """Return a row of a CSV file; every row is one line, whatever is in it."""
    times = {f"{phase}_ms": ms for phase, ms in answer.get("latency_ms", {}).items()}
    best = json.dumps(answer["predictions"]) if "predictions" in answer else ""
    values = {**answer, **times, "predictions": best}
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([_plain(values.get(column, "")) for column in COLUMNS])
    return (text.getvalue() + "\n").encode("utf-8", "surrogateescape")


def _plain(value: object) -> object:
    return value.replace("\n", "\\n").replace("\r", "\\r") if isinstance(value, str) else value
