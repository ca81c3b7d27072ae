"""Answers as rows of a CSV file that is usable at any moment."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from types import TracebackType

from qdeploy.core.errors import InputError
from qdeploy.core.whole import flush_folder, is_special, open_alone, require_new, require_place
from qdeploy.runtime.predict import Answer

COLUMNS = ("image", "label", "index", "probability", "decode_ms", "preprocess_ms", "infer_ms", "error", "reason")
IF_ABSTAINING = ("would_be", "score")
"""Columns behind these of a model that calls images unknown: the best label in any case, and what was judged by."""
FLUSH_ROWS = 256


class AnswerCsv:
    """A file that grows row by row under the name ``<file>.part`` and gets its own name when it is complete.

    What stops before is left as the ``.part`` file, with whole rows; an earlier file of the name stays until then. A
    device or pipe is written to as it is; of a link, what it points to is replaced.
    """

    def __init__(self, path: Path, *, top: int = 1, replace: bool = False, abstains: bool = False) -> None:
        """Begin the file.

        Args:
            path: The file's name when it is complete.
            top: Labels of an image; the second and others have the columns ``label_2, index_2, probability_2, ...``
                behind ``COLUMNS``, empty where a model has fewer.
            replace: Take the place of a file that is there.
            abstains: Whether the model calls images unknown: then ``IF_ABSTAINING`` follows ``COLUMNS``.

        Raises:
            InputError: If ``path`` is or needs a folder, may not be replaced, or another process writes it.
            OSError: If it cannot be written to.
        """
        if path.is_dir():
            raise InputError(f"cannot write the answers to {path}: it is a folder; give a file's name")
        special = is_special(path)
        require_new(path, replace)
        require_place(path)
        self.path = path if special else Path(os.path.realpath(path))
        self.part = self.path if special else self.path.with_name(f"{self.path.name}.part")
        self.rows = 0
        self.top = top
        self.abstains = abstains
        handle = os.open(self.part, os.O_WRONLY) if special else open_alone(self.part)
        if handle is None:
            raise InputError(f"another process writes the answers to {path}; wait for it, or give another file")
        self._stream = os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape", newline="")
        self._writer = csv.writer(self._stream)
        known = (*COLUMNS, *(IF_ABSTAINING if abstains else ()))
        self._writer.writerow(
            (*known, *(f"{name}_{k}" for k in range(2, top + 1) for name in ("label", "index", "probability")))
        )

    def write(self, answer: Answer) -> None:
        """Add a row: the best labels, or the error."""
        best = answer.prediction
        others: list[object] = []
        row: tuple[object, ...] = ("", "", "", "", "", "", answer.error, answer.reason)
        if best is not None:
            ms = answer.latency_ms  # a server's decode includes the preprocessing
            times = (f"{ms[phase]:.4f}" if phase in ms else "" for phase in ("decode", "preprocess", "infer"))
            row = (best.label, best.index, f"{best.probability:.6f}", *times, "", "")
            for r in best.top(self.top)[1:]:
                others += (r.label, r.index, f"{r.probability:.6f}")
        others += [""] * (3 * (self.top - 1) - len(others))
        if self.abstains:
            judged = best is not None and best.score is not None
            row += (best.would_be, f"{best.score:.4f}") if best and judged else ("", "")
        self._writer.writerow((answer.image, *row, *others))
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
            if self.part != self.path:
                os.fsync(self._stream.fileno())
                if kind is None:
                    os.replace(self.part, self.path)
                    flush_folder(self.path.parent)
        if kind is not None and self.part != self.path:  # Ctrl-C may have come between a row and its count
            self.rows = self._rows_in_part()

    def _rows_in_part(self) -> int:
        with self.part.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            return sum(1 for _ in csv.reader(stream)) - 1
