"""The command ``qdeploy review``: the page to label images on, and the folders that follow from its labels."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qdeploy.cli.options import OUTPUT, Json
from qdeploy.cli.output import Bar, emit_json, hint, note, say
from qdeploy.core.errors import InputError
from qdeploy.core.words import counted

if TYPE_CHECKING:
    from qdeploy.data.review.collected import Collected

PAGE = Path("review.html")
SORTING = "Sort them"


def review_command(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Images that `qdeploy serve --collect` kept, or any.")
    ],
    label: Annotated[
        list[str] | None,
        typer.Option(help="A further label to choose from, may be repeated; needed where no model said any."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What the page has made: sort the images by it into --out.", rich_help_panel=SORTING
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The page to write, review.html by default; with --labels the data set to make or add to.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the page if it exists.", rich_help_panel=OUTPUT)
    ] = False,
    json: Json = False,
) -> None:
    """Label collected images on a page, and sort them by class.

    Without --labels, writes a page that needs no network, on which a person labels the images by keyboard. With the
    file of labels that it makes, copies the images into a folder a class, which `qdeploy train` takes.
    """
    from qdeploy.data.review.collected import collected_images

    problems: list[str] = []
    if labels is None:
        with Bar("reading images") as bar:
            _write_page(
                folder,
                list(collected_images(folder, problems)),
                tuple(label or ()),
                out or PAGE,
                force,
                json,
                problems,
                bar,
            )
        return
    from qdeploy.data.review.sorting import read_labels, sort_images

    if out is None or label:
        raise InputError("--labels needs --out, and no --label", fix="give the data set to make or add to")
    chosen = read_labels(labels)
    found = sort_images(list(collected_images(folder, problems)), chosen, out)
    for problem in (*problems, *found.problems):
        note(f"left out: {problem}")
    for text in found.notes:
        note(text)
    if json:
        emit_json({**found.to_dict(), "problems": [*problems, *found.problems]})
        return
    by_class = ", ".join(f"{name} {n}" for name, n in found.classes.items()) or "none"
    say(f"{found.out}: {counted(found.written, 'image')} written, {found.there} were there ({by_class})")
    say(f"{found.none} show none of the classes, {found.unlabelled} have no label")
    hint(f"next: qdeploy train --data {shlex.quote(str(out))}; with --weights RUN it starts from a run's weights")


def _write_page(
    folder: Path,
    images: list[Collected],
    more: tuple[str, ...],
    out: Path,
    force: bool,
    json: bool,
    problems: list[str],
    bar: Bar,
) -> None:
    from qdeploy.core.files import write_bytes
    from qdeploy.core.whole import require_new, require_place
    from qdeploy.data.review.collected import labels_of
    from qdeploy.data.review.page import review_page

    require_new(out, force)
    require_place(out)
    if not images:
        raise InputError("there is no image to label", found="an empty folder")
    names = labels_of(images, more)
    if not names:
        raise InputError("no model has said which labels there are", fix="name them: --label cat --label dog")
    text, shown = review_page(images, names, problems, bar.update)
    write_bytes(out, text.encode())
    for problem in problems:
        bar.line(f"left out: {problem}")
    if json:
        emit_json({"page": str(out), "images": shown, "labels": list(names), "problems": problems})
        return
    say(f"{out}: {counted(shown, 'image')}, {counted(len(names), 'label')}; open it in a browser")
    hint(f"next: qdeploy review {shlex.quote(str(folder))} --labels labels.json --out DATA")
