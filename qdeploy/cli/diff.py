"""The command ``qdeploy diff``: its options and its list of differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdeploy.cli.options import Json, Split
from qdeploy.cli.output import Bar, emit_json, say
from qdeploy.cli.tables import show_table, table
from qdeploy.core.words import counted

if TYPE_CHECKING:
    from qdeploy.checks.diff import Change, Difference, Numbers

LONG = 60


def diff_command(
    a: Annotated[Path, typer.Argument(metavar="A", help="A model file or an export's folder.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    data: Annotated[
        str | None, typer.Option(help="Images to run both on. Default: the embedded set, where the labels fit.")
    ] = None,
    split: Annotated[Split, typer.Option(help="Which images of the data, as for eval.")] = "test",
    json: Json = False,
) -> None:
    """Explain how two artifacts differ, and how much on real images."""
    from qdeploy.checks.diff import diff
    from qdeploy.runtime.classifier import find_artifact

    with Bar("comparing") as bar:
        result = diff(find_artifact(a), find_artifact(b), data, split, bar.update)
    if json:
        emit_json(result.to_dict())
    else:
        show(result)


def show(result: Difference) -> None:
    """Print what differs, what does not, and what that means."""
    say(f"A: {result.a}")
    say(f"B: {result.b}")
    if result.changes:
        rows = [(c.subject, c.field, *_cells(c.a, c.b)) for c in _shown(result.changes)]
        show_table(table(("subject", "field", "A", "B"), rows, words=range(4)))
    say(f"the same: {', '.join(result.same) or 'nothing'}")
    if result.numbers:
        _show_numbers(result.numbers)
    for text in result.meaning:
        say(f"- {text}")


def _shown(changes: Sequence[Change]) -> Iterator[Change]:
    """Leave out what was measured before the temperature where that after it is the same: it is at 1."""
    known = {(c.field, repr(c.a), repr(c.b)) for c in changes}
    for c in changes:
        name = c.field.removeprefix("before.")
        if name == c.field or (f"after.{name}", repr(c.a), repr(c.b)) not in known:
            yield c


def _cells(a: Any, b: Any) -> list[str]:
    """Shorten two values; of lists only what the other lacks is shown."""
    if isinstance(a, list) and isinstance(b, list) and set(a) != set(b) and max(len(a), len(b)) > 3:
        return [
            f"{len(x)}, alone: {_short(', '.join(v for v in x if v not in y) or 'none')}" for x, y in ((a, b), (b, a))
        ]
    for digits in (4, 8, 17):  # as few as tell the two apart
        texts = [_text(v, digits) for v in (a, b)]
        if texts[0] != texts[1]:
            break
    return list(map(_short, texts))


def _text(value: Any, digits: int) -> str:
    """Return a value of a card as plain text, its figures with so many significant digits."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{k}: {_text(v, digits)}" for k, v in value.items() if v is not None)
    if isinstance(value, list | tuple):
        return ", ".join(_text(v, digits) for v in value) or "none"
    return str(value)


def _short(text: str) -> str:
    return text if len(text) <= LONG else text[: LONG - 3] + "..."


def _show_numbers(n: Numbers) -> None:
    p = n.parity
    noise = "exact" if p.to_dict()["sqnr_db"] is None else f"{p.sqnr_db:.1f} dB"
    say(
        f"logits on {counted(p.n, 'image')}: largest difference {p.max_abs:.4g}, cosine {p.cosine:.6f}, SQNR {noise}; "
        f"same answer on {p.same_words()}; {n.lost} lost, {n.gained} gained"
    )
    for f in n.flips:
        say(f"  {f.label}: {counted(f.changed, 'answer')} not the same, {f.lost} lost, {f.gained} gained")
