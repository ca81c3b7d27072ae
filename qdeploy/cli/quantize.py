"""The command ``qdeploy quantize``: its options; what it prints is that of ``qdeploy export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qdeploy.cli.export import show, steps
from qdeploy.cli.int8_options import Int8Options
from qdeploy.cli.options import Json
from qdeploy.cli.output import Bar, extra_needed
from qdeploy.core.errors import InputError

IMAGES = "Images"


def quantize_command(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A float ONNX file that takes float32 images, batch x 3 x S x S or batch x S x S x 3, and gives "
            "logits or probabilities.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Data set with the file's classes in their order: a name or a folder.", rich_help_panel=IMAGES
        ),
    ],
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            help="What is taken from each channel of an image in 0 to 1. Default: ImageNet's.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(metavar="R,G,B", help="What that is divided by. Default: ImageNet's.", rich_help_panel=IMAGES),
    ] = None,
    *,
    options: Int8Options,
    json: Json = False,
) -> int:
    """Make an INT8 model of a float ONNX file from elsewhere, with the same checks.

    The exit code is 1 if INT8 is rejected.
    """
    with extra_needed():
        from qdeploy.export import export_onnx
    from qdeploy.core.artifact import EXPORTS
    from qdeploy.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD

    config = options.config(int8=True)
    means, stds = channels("--mean", mean, IMAGENET_MEAN), channels("--std", std, IMAGENET_STD)
    with Bar("quantizing") as bar:
        out = options.out or EXPORTS / file.stem
        report = export_onnx(file, data, out, mean=means, std=stds, config=config, note=bar.line, progress=steps(bar))
    return show(report, json, config.kits)


def channels(option: str, text: str | None, default: tuple[float, float, float]) -> tuple[float, float, float]:
    """Parse three numbers between commas."""
    if text is None:
        return default
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{option} takes three numbers between commas, found '{text}'") from error
    return red, green, blue
