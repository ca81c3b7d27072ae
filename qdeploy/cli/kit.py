"""The command ``qdeploy kit``: its options and the list of what it made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qdeploy.cli.export import show_kits
from qdeploy.cli.options import Json
from qdeploy.cli.output import emit_json, say
from qdeploy.core.artifact import SHIPPED, newest_export
from qdeploy.core.errors import InputError
from qdeploy.export.kits.table import KITS, kit_names, write_kits
from qdeploy.export.libraries import library_lines, write_libraries


def kit_command(
    names: Annotated[
        str | None,
        typer.Argument(metavar="KITS", help=f"Kits, between commas: {', '.join(KITS)}.", show_default=False),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Argument(
            metavar="EXPORT",
            help="An export's folder. Default: the newest below ./exports, else the model that ships in the package.",
            show_default=False,
        ),
    ] = None,
    wanted: Annotated[
        str | None,
        typer.Option(
            "--for", metavar="KITS", help="The same in other words: qdeploy kit EXPORT --for c.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the kits' folders are put. Default: the export's folder, or here for the shipped model.",
            show_default=False,
        ),
    ] = None,
    native_library: Annotated[
        str | None,
        typer.Option(
            metavar="CPUS",
            help="Also compile libraries for --engine native, beside the export's model files: here, aarch64, armhf, "
            "riscv64, x86_64, or a compiler's command, between commas.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Make folders with which other programs run an export.

    The same as the options of `qdeploy export`, for an export that is there already.
    """
    if wanted is not None:
        if export is not None:
            raise InputError("kits are named twice", found=f"{names} and {wanted}", fix="give EXPORT and `--for`")
        names, export = wanted, None if names is None else Path(names)
    if names is None:
        raise InputError("which kits?", fix=f"name some of {', '.join(KITS)}")
    kits = kit_names(names)
    folder = export or newest_export() or SHIPPED
    if native_library is not None and folder.exists() and folder.samefile(SHIPPED):
        raise InputError("the model inside the package gets no libraries beside it", fix="give a copy of its folder")
    libraries = write_libraries(folder, native_library) if native_library is not None else []
    folders = write_kits(folder, kits, out or (Path() if folder == SHIPPED else folder))
    if json:
        made = {"libraries": [str(path) for path in libraries]} if libraries else {}
        emit_json({"export": str(folder), "kits": {name: str(path) for name, path in folders.items()}, **made})
        return 0
    show_kits(folders)
    for line in library_lines(libraries):
        say(line)
    return 0
