"""Options of the verb that keeps some of the images that it answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdeploy.cli.options import bytes_of

if TYPE_CHECKING:
    from qdeploy.serve.collect_config import CollectConfig

COLLECT = "Images to label"


@dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """Which images are kept, and how many."""

    collect: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep uncertain and unknown images, and some by chance, in this folder; see `qdeploy review`.",
            rich_help_panel=COLLECT,
            show_default=False,
        ),
    ] = None
    collect_images: Annotated[
        int | None, typer.Option(help="Most images in it. Default: 1000.", rich_help_panel=COLLECT, show_default=False)
    ] = None
    collect_mb: Annotated[
        float | None, typer.Option(help="Most MiB in it. Default: 256.", rich_help_panel=COLLECT, show_default=False)
    ] = None
    collect_below: Annotated[
        float | None,
        typer.Option(
            help="An answer of a lower probability is uncertain. Default: 0.8.",
            rich_help_panel=COLLECT,
            show_default=False,
        ),
    ] = None
    collect_share: Annotated[
        float | None,
        typer.Option(
            help="Share of the other images kept by chance. Default: 0.01.", rich_help_panel=COLLECT, show_default=False
        ),
    ] = None

    def config(self) -> CollectConfig | None:
        """Return the configuration, or None if nothing is kept.

        Raises:
            InputError: If an option cannot be used.
        """
        from qdeploy.core.errors import InputError
        from qdeploy.serve.collect_config import CollectConfig

        given: dict[str, Any] = {
            "most_images": self.collect_images,
            "most_bytes": None if self.collect_mb is None else bytes_of(self.collect_mb, "collect_mb", 0.01, 10**6),
            "below": self.collect_below,
            "share": self.collect_share,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        if self.collect is None:
            if chosen:
                raise InputError("--collect-... is of images that are kept", fix="give the folder with --collect")
            return None
        return CollectConfig(folder=self.collect, **chosen)
