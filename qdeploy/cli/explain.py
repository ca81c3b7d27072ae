"""The command ``qdeploy explain``: its options, its table and its page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qdeploy.cli.options import OUTPUT, Json
from qdeploy.cli.output import emit_json, note, say
from qdeploy.cli.tables import show_table, table
from qdeploy.core.words import counted, percent

if TYPE_CHECKING:
    from qdeploy.checks.explain import Explainer, Explanation

PAGE = Path("explanation.html")


def explain_command(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES...", help="Files, folders or globs.", show_default=False),
    ],
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="A model file, or an export's folder for all its ONNX files; may be repeated. Default: the newest "
            "export below ./exports, else the model that ships in the package.",
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="The class whose map is wanted. Default: each file's own answer.")
    ] = None,
    attention: Annotated[bool, typer.Option("--attention", help="Show what every layer attends to, too.")] = False,
    out: Annotated[Path, typer.Option(help="The page to write.", rich_help_panel=OUTPUT)] = PAGE,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the page if it exists.", rich_help_panel=OUTPUT)
    ] = False,
    json: Json = False,
) -> None:
    """Show where in an image a model finds its answer.

    Class activation maps of models that end in pooling and a linear layer, the tokens that a SOTA head picks, and
    attention maps, of fp32 and INT8 side by side, from the files that run.
    """
    from qdeploy.checks.explain import Explainer
    from qdeploy.checks.explain.page import html_page
    from qdeploy.checks.explain.run import files_of
    from qdeploy.core.artifact import read_artifact
    from qdeploy.core.files import write_bytes
    from qdeploy.core.whole import require_new, require_place
    from qdeploy.runtime.inputs import expand

    require_new(out, force)
    require_place(out)
    names = list(expand(images))
    files = files_of(model or [])
    if not model:
        note(f"model: {files[0].parent}")
    explainers = [Explainer(read_artifact(file), attention=attention) for file in files]
    found = list(_explained(names, explainers, label))
    write_bytes(out, html_page(found).encode())
    if json:
        emit_json({"page": str(out), "images": [_document(name, each) for name, each in found]})
        return
    show_table(table(_HEAD, [_row(name, e) for name, each in found for e in each], words=(0, 1, 2, 5)))
    say(f"{out}: the maps of {counted(len(found), 'image')} by {counted(len(files), 'file')}")


def _explained(
    names: Sequence[str], explainers: Sequence[Explainer], label: str | None
) -> Iterator[tuple[str, list[Explanation]]]:
    """Explain each image; an image that cannot be read is named."""
    from qdeploy.core.errors import ImageError

    for name in names:
        try:
            yield name, [explainer(name, label) for explainer in explainers]
        except ImageError as error:
            raise ImageError(f"{name}: {error}", error.reason) from error


_HEAD = ("image", "precision", "answer", "probability", "logit", "strongest at")


def _row(name: str, e: Explanation) -> list[str]:
    """Say where a map is strongest, as row and column of its cells, counted from 1."""
    place, logit = "-", "-"
    if e.class_map:
        values, logit = e.class_map.values, f"{e.class_map.logit:.2f}"
        row, column = divmod(int(values.argmax()), values.shape[1])
        place = f"row {row + 1}, column {column + 1} of {values.shape[0]}x{values.shape[1]}"
    elif e.tokens:
        row, column = e.tokens.picked[0]
        place = f"row {row + 1}, column {column + 1} of {e.tokens.side}x{e.tokens.side}"
    return [name, e.precision, e.label, percent(e.probability), logit, place]


def _document(name: str, found: Sequence[Explanation]) -> dict[str, object]:
    return {"image": name, "files": [e.to_dict() for e in found]}
