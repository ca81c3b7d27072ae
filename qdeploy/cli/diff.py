"""``qdeploy diff``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qdeploy.cli.output import Bar, emit_json, show_table

if TYPE_CHECKING:
    from qdeploy.checks.diff import Difference, Numbers

LONG = 60


@click.command("diff")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--data", help="Images to run both on. Default: the embedded set, where the labels fit.")
@click.option(
    "--split", type=click.Choice(["test", "val", "train", "all"]), default="test", help="Of the data, as for eval."
)
@click.option("--json", is_flag=True, help="Print the comparison as one JSON document.")
def diff_command(a: Path, b: Path, data: str | None, split: str, json: bool) -> None:
    """Explain how two artifacts differ, and how much on real images.

    A and B are model files or export folders.
    """
    from qdeploy.checks.diff import diff
    from qdeploy.runtime.classifier import find_artifact

    with Bar("comparing") as bar:
        result = diff(find_artifact(a), find_artifact(b), data, split, bar.update)
    if json:
        emit_json(result.to_dict())
    else:
        _show(result)


def _show(result: Difference) -> None:
    from rich.markup import escape
    from rich.table import Table

    print(f"A: {result.a}\nB: {result.b}")
    table = Table("subject", "field", "A", "B")
    for c in result.changes:
        table.add_row(c.subject, escape(c.field), *(escape(text) for text in _cells(c.a, c.b)))
    if result.changes:
        show_table(table)
    print(f"the same: {', '.join(result.same) or 'nothing'}")
    if result.numbers:
        _show_numbers(result.numbers)
    for text in result.meaning:
        print(f"- {text}")


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
    print(
        f"logits on {p.n} images: largest difference {p.max_abs:.4g}, cosine {p.cosine:.6f}, SQNR {noise}; same answer "
        f"on {p.top1_agreement:.2%}; {n.lost} lost, {n.gained} gained"
    )
    for f in n.flips:
        print(f"  {f.label}: {f.changed} answers differ, {f.lost} lost, {f.gained} gained")
