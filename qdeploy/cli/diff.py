"""The command ``qdeploy diff``: its options and its list of differences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdeploy.cli.options import Json, Split
from qdeploy.cli.output import Bar, emit_json, say
from qdeploy.cli.tables import show_table, table

if TYPE_CHECKING:
    from qdeploy.checks.diff import Difference, Numbers

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
        rows = [(c.subject, c.field, *_cells(c.a, c.b)) for c in result.changes]
        show_table(table(("subject", "field", "A", "B"), rows, words=range(4)))
    say(f"the same: {', '.join(result.same) or 'nothing'}")
    if result.numbers:
        _show_numbers(result.numbers)
    for text in result.meaning:
        say(f"- {text}")


def _cells(a: Any, b: Any) -> list[str]:
    """Shorten two values; of lists only what the other lacks is shown."""
    if isinstance(a, list) and isinstance(b, list) and set(a) != set(b) and max(len(a), len(b)) > 3:
        return [
            f"{len(x)}, alone: {_short(', '.join(v for v in x if v not in y) or 'none')}" for x, y in ((a, b), (b, a))
        ]
    return ["-" if v is None else _short(str(v)) for v in (a, b)]


def _short(text: str) -> str:
    return text if len(text) <= LONG else text[: LONG - 3] + "..."


def _show_numbers(n: Numbers) -> None:
    p = n.parity
    noise = "exact" if p.to_dict()["sqnr_db"] is None else f"{p.sqnr_db:.1f} dB"
    say(
        f"logits on {p.n} images: largest difference {p.max_abs:.4g}, cosine {p.cosine:.6f}, SQNR {noise}; same answer "
        f"on {p.top1_agreement:.2%}; {n.lost} lost, {n.gained} gained"
    )
    for f in n.flips:
        say(f"  {f.label}: {f.changed} answers differ, {f.lost} lost, {f.gained} gained")
