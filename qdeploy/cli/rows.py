"""The CSV files of verbs whose results are rows of one kind."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any


@contextmanager
def csv_rows(file: Path | None, replace: bool, kind: type[Any]) -> Iterator[Callable[[Any], None] | None]:
    """Yield what writes a row; the file appears when all are written.

    Args:
        file: The file; None writes nothing.
        replace: Take the place of a file that is there.
        kind: The rows' dataclass: its fields are the columns.

    Raises:
        InputError: If the file may not be replaced, or its folder cannot be written to.
    """
    if file is None:
        yield None
        return
    from qdeploy.core.whole import file_made_whole, require_new, require_place

    require_new(file, replace)
    require_place(file)
    with file_made_whole(file) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="backslashreplace", newline="")
        writer = csv.DictWriter(text, list(kind.__dataclass_fields__))
        writer.writeheader()
        yield lambda row: writer.writerow(asdict(row))
        text.flush()
        text.detach()
