"""The command ``qdeploy quantize``: its options; what it prints is that of ``qdeploy export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qdeploy.cli.export import show, steps
from qdeploy.cli.foreign_options import IMAGES, ForeignOptions
from qdeploy.cli.int8_options import Int8Options
from qdeploy.cli.options import Json
from qdeploy.cli.output import Bar, extra_needed


def quantize_command(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A float ONNX file that takes images, batch x C x H x W or batch x H x W x C, and gives logits or "
            "probabilities.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Data set with the file's classes, in their order or by name: a name or a folder.",
            rich_help_panel=IMAGES,
        ),
    ],
    *,
    foreign: ForeignOptions,
    options: Int8Options,
    json: Json = False,
) -> int:
    """Make an INT8 model of a float ONNX file from elsewhere, with the same checks.

    The exit code is 1 if INT8 is rejected.
    """
    with extra_needed():
        from qdeploy.export import export_onnx
    from qdeploy.core.artifact import EXPORTS

    config, given = options.config(int8=True), foreign.foreign()
    with Bar("quantizing") as bar:
        out = options.out or EXPORTS / file.stem
        report = export_onnx(file, data, out, foreign=given, config=config, note=bar.line, progress=steps(bar))
    return show(report, json, config.kits)
