"""``qdeploy quantize``"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qdeploy.cli.export import int8_options, searched, show, ticks
from qdeploy.cli.output import Bar, extra_needed
from qdeploy.core.errors import InputError


@click.command("quantize")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="Data set with the file's classes in their order: a name or a folder.")
@click.option("--mean", help="What is taken from each channel of an image in [0, 1]: R,G,B. Default: ImageNet's.")
@click.option("--std", help="What that is divided by: R,G,B. Default: ImageNet's.")
@int8_options
def quantize_command(
    file: Path, data: str, mean: str | None, std: str | None, out: Path | None, json: bool, **fields: Any
) -> int:
    """Make an INT8 model of a float ONNX file from elsewhere, with the same checks.

    FILE takes float32 images [batch, 3, S, S] or [batch, S, S, 3] and gives logits or probabilities.
    """
    with extra_needed():
        from qdeploy.export import ExportConfig, export_onnx
    from qdeploy.core.artifact import EXPORTS
    from qdeploy.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD

    config = ExportConfig(int8=True, **searched(fields))
    means, stds = channels("--mean", mean, IMAGENET_MEAN), channels("--std", std, IMAGENET_STD)
    with Bar("quantizing") as bar:
        out = out or EXPORTS / file.stem
        report = export_onnx(file, data, out, mean=means, std=stds, config=config, note=bar.line, tick=ticks(bar))
    return show(report, json, config.kit)


def channels(option: str, text: str | None, default: tuple[float, float, float]) -> tuple[float, float, float]:
    """Parse three numbers between commas."""
    if text is None:
        return default
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{option} takes three numbers between commas, found '{text}'") from error
    return red, green, blue
