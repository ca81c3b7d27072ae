"""The options that ``qdeploy quantize`` and ``qdeploy adopt`` share: what an ONNX file from elsewhere does not say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qdeploy.core.errors import InputError

if TYPE_CHECKING:
    from qdeploy.export import ForeignConfig

IMAGES = "Images"
ANSWERS = "Answers"


@dataclass(frozen=True, kw_only=True)
class ForeignOptions:
    """The options as typed; ``ForeignConfig`` checks their values."""

    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Class names in the order of the outputs, one a line or as JSON. Default: the file's metadata, "
            "labels.txt or config.json beside it, else the data's classes.",
            show_default=False,
            rich_help_panel=ANSWERS,
        ),
    ] = None
    output: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Output, or any tensor, with logits or probabilities. Default: found by what the graph computes.",
            rich_help_panel=ANSWERS,
        ),
    ] = None
    range: Annotated[
        str,
        typer.Option(metavar="0-1|0-255", help="A pixel's values before mean and std.", rich_help_panel=IMAGES),
    ] = "0-1"
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            help="What is taken from each channel, in the units of --range. Default: ImageNet's for 0-1, else 0.",
            show_default=False,
            rich_help_panel=IMAGES,
        ),
    ] = None
    std: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            help="What that is divided by. Default: ImageNet's for 0-1, else 1.",
            show_default=False,
            rich_help_panel=IMAGES,
        ),
    ] = None
    colours: Annotated[
        str,
        typer.Option(metavar="rgb|bgr", help="Order of the channels that the graph takes.", rich_help_panel=IMAGES),
    ] = "rgb"
    size: Annotated[
        int | None,
        typer.Option(
            help="Side of the images, for a graph that takes any. Default: the graph's.", rich_help_panel=IMAGES
        ),
    ] = None

    def foreign(self) -> ForeignConfig:
        """Return the configuration.

        Raises:
            InputError: If an option cannot be used.
        """
        from qdeploy.export import ForeignConfig

        return ForeignConfig(
            labels=self.labels,
            output=self.output,
            range=self.range,
            mean=channels("--mean", self.mean),
            std=channels("--std", self.std),
            colours=self.colours,
            size=self.size,
        )


def channels(option: str, text: str | None) -> tuple[float, float, float] | None:
    """Parse one number, for all channels, or three between commas."""
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
        red, green, blue = values * 3 if len(values) == 1 else values
    except ValueError as error:
        raise InputError(f"{option} takes three numbers between commas, or one, found '{text}'") from error
    return red, green, blue
