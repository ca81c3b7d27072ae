"""The command ``qdeploy kit``: its options and the list of what it made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qdeploy.cli.export import show_kits
from qdeploy.cli.options import Json
from qdeploy.cli.output import emit_json
from qdeploy.core.artifact import SHIPPED, newest_export
from qdeploy.export.kits.table import KITS, kit_names, write_kits


def kit_command(
    names: Annotated[str, typer.Argument(metavar="KITS", help=f"Kits, between commas: {', '.join(KITS)}.")],
    export: Annotated[
        Path | None,
        typer.Argument(
            metavar="EXPORT",
            help="An export's folder. Default: the newest below ./exports, else the model that ships in the package.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the kits' folders are put. Default: the export's folder, or here for the shipped model.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Make folders with which other programs run an export.

    The same as the option of `qdeploy export`, for an export that is there already.
    """
    wanted = kit_names(names)
    folder = export or newest_export() or SHIPPED
    folders = write_kits(folder, wanted, out or (Path() if folder == SHIPPED else folder))
    if json:
        emit_json({"export": str(folder), "kits": {name: str(path) for name, path in folders.items()}})
    else:
        show_kits(folders)
    return 0
