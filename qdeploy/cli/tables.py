"""The layout of all tables: no lines between columns, so that a table fits into 80 characters."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from textwrap import TextWrapper
from typing import TYPE_CHECKING

from qdeploy.core.errors import for_command_line
from qdeploy.core.printable import printable

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 80
"""Width in characters of what is printed where there is no terminal."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", words: Sequence[int] = (0,)) -> Table:
    """Return a table.

    Args:
        head: The names of the columns.
        rows: A text for each column.
        title: Printed above.
        words: The columns, from 0, that hold words: flush left, and broken into lines where they are too long. The
            others hold figures: flush right, and never broken.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=Text(printable(title)) if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for i, name in enumerate(head):
        made.add_column(name, justify="left" if i in words else "right", no_wrap=i not in words, overflow="fold")
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))  # as it is: a name with brackets is no markup
    return made


def show_table(made: Table) -> None:
    """Print a table on stdout, within the terminal's width, or within 80 columns where there is none."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(made)
    console.print()


def print_finding(mark: str, text: str) -> None:
    """Print a word and what was found, below itself where it takes several lines."""
    indent = " " * 10
    words = TextWrapper(WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    print(words.fill(printable(for_command_line(f"{mark:>8}  {text}"))))
