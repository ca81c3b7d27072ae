"""HTML and SVG in which every text is escaped, unless it is markup that was made here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"})
_VOID = ("br", "img", "meta")


class Markup(str):
    """HTML that is ready. Putting it together with other text gives a plain string again, which is escaped."""

    __slots__ = ()


def join(parts: Iterable[str]) -> Markup:
    """Return parts one after the other; text among them is escaped."""
    return Markup("".join(part if isinstance(part, Markup) else part.translate(_ESCAPES) for part in parts))


def tag(_name: str, /, *children: str, **attributes: str | float) -> Markup:
    """Return an element.

    Args:
        _name: Name of the element.
        children: What is in it; text is escaped.
        attributes: Escaped, too. ``_`` stands for ``-``, and one at the end is left out: ``class_``, ``text_anchor``.
            Empty ones are left out.
    """
    pairs = ((key.rstrip("_").replace("_", "-"), str(value)) for key, value in attributes.items())
    head = "".join(f' {key}="{value.translate(_ESCAPES)}"' for key, value in pairs if value)
    end = "" if _name in _VOID else f"{join(children)}</{_name}>"
    return Markup(f"<{_name}{head}>{end}")


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "", row_kinds: Sequence[str] = ()
) -> Markup:
    """Return a table, which scrolls by itself where the page is too narrow for it.

    Args:
        head: The names of the columns.
        rows: The cells of each row.
        kind: The table's class.
        row_kinds: The class of each row; empty for one that has none.
    """
    lines = [
        tag("tr", *(tag("td", cell) for cell in row), class_=row_kinds[i] if row_kinds else "")
        for i, row in enumerate(rows)
    ]
    inside = tag("table", tag("tr", *(tag("th", name) for name in head)), *lines, class_=kind)
    return tag("div", inside, class_="wide")


def page(title: str, style: str, *body: str) -> str:
    """Return a whole page, which needs no other file.

    Args:
        title: Title of the page.
        style: CSS, which is never text of a user: it is not escaped.
        body: The elements of the page.
    """
    narrow = tag("meta", name="viewport", content="width=device-width, initial-scale=1")
    head = [tag("meta", charset="utf-8"), narrow, tag("title", title), tag("style", Markup(style))]
    return f'<!doctype html><html lang="en">{join(head)}{tag("body", *body)}</html>\n'
