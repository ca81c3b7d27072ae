"""Answers as rows of a CSV file that is usable at any moment."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from types import TracebackType

from qdeploy.core.errors import InputError
from qdeploy.runtime.predict import Answer

COLUMNS = ("image", "label", "index", "probability", "decode_ms", "preprocess_ms", "infer_ms", "error", "reason")
FLUSH_ROWS = 256


class AnswerCsv:
    """A file that grows row by row under the name ``<file>.part`` and gets its own name when it is complete.

    What stops before is left as the ``.part`` file, with whole rows; an earlier file of the name stays until then.
    """

    def __init__(self, path: Path) -> None:
        """Begin the file.

        Raises:
            InputError: If ``path`` is a folder.
            OSError: If it cannot be written to.
        """
        if path.is_dir():
            raise InputError(f"cannot write the answers to {path}: it is a folder; give a file's name")
        self.path = path
        self.part = path.with_name(f"{path.name}.part")
        self.rows = 0
        self._stream = self.part.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        self._writer = csv.writer(self._stream)
        self._writer.writerow(COLUMNS)

    def write(self, answer: Answer) -> None:
        """Add a row: the best label, or the error."""
        best = answer.prediction
        row: tuple[object, ...] = ("", "", "", "", "", "", answer.error, answer.reason)
        if best is not None:
            ms = answer.latency_ms  # a server's decode includes the preprocessing
            times = (f"{ms[phase]:.4f}" if phase in ms else "" for phase in ("decode", "preprocess", "infer"))
            row = (best.label, best.index, f"{best.probability:.6f}", *times, "", "")
        self._writer.writerow((answer.image, *row))
        self.rows += 1
        if self.rows % FLUSH_ROWS == 0:
            self._stream.flush()

    def __enter__(self) -> AnswerCsv:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stream:
            self._stream.flush()
            os.fsync(self._stream.fileno())
        if kind is None:
            os.replace(self.part, self.path)
        else:  # Ctrl-C may have come between a row and its count
            self.rows = self._rows_in_part()

    def _rows_in_part(self) -> int:
        with self.part.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            return sum(1 for _ in csv.reader(stream)) - 1
