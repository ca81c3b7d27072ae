"""The command ``qdeploy adopt``: its options; what it prints is that of ``qdeploy export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qdeploy.cli.export import show, steps
from qdeploy.cli.foreign_options import IMAGES, ForeignOptions
from qdeploy.cli.options import Json
from qdeploy.cli.output import Bar, extra_needed


def adopt_command(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A float ONNX file that takes images, batch x C x H x W or batch x H x W x C, and gives logits or "
            "probabilities.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set to compare and measure on, with the file's classes or some of them. Default: generated "
            "images, and no accuracy.",
            show_default=False,
            rich_help_panel=IMAGES,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The export's folder. Default: ./exports/<name>.", show_default=False)
    ] = None,
    *,
    foreign: ForeignOptions,
    json: Json = False,
) -> int:
    """Make a float model file of an ONNX file from elsewhere.

    Its answers are compared with the file's, image by image and in batches.
    """
    with extra_needed():
        from qdeploy.export import adopt_onnx
    from qdeploy.core.artifact import EXPORTS

    given = foreign.foreign()
    with Bar("adopting") as bar:
        report = adopt_onnx(
            file, out or EXPORTS / file.stem, data=data, foreign=given, note=bar.line, progress=steps(bar)
        )
    return show(report, json, ())
