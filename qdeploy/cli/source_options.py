"""Options of the verb that classifies what comes into a folder and what a camera sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qdeploy.serve.sources.config import SourcesConfig

SOURCES = "Folders and cameras"


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What is classified besides requests."""

    watch: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Classify every image that comes into it, once.", rich_help_panel=SOURCES),
    ] = None
    watch_new_only: Annotated[
        bool,
        typer.Option(
            "--watch-new-only", help="Leave alone what is in the folder at the start.", rich_help_panel=SOURCES
        ),
    ] = False
    camera: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]CAMERA",
            help="A device, an rtsp:// or http:// URL, or a video file, read by ffmpeg.",
            envvar="QDEPLOY_CAMERA",
            show_envvar=True,
            rich_help_panel=SOURCES,
        ),
    ] = None
    every: Annotated[float, typer.Option(help="Seconds from one frame to the next.", rich_help_panel=SOURCES)] = 1.0
    answers: Annotated[
        Path | None,
        typer.Option(
            help="Add the answers to this .jsonl or .csv. Default: answers.jsonl; with --mqtt and cameras only, none.",
            show_default=False,
            rich_help_panel=SOURCES,
        ),
    ] = None
    mqtt: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Publish the answers: mqtt://host:port/topic, or mqtts:// with TLS.",
            envvar="QDEPLOY_MQTT",
            rich_help_panel=SOURCES,
        ),
    ] = None
    source_model: Annotated[
        str | None, typer.Option(help="Model that answers. Default: the first.", rich_help_panel=SOURCES)
    ] = None
    top: Annotated[int, typer.Option(help="Labels of an answer.", rich_help_panel=SOURCES)] = 3

    def config(self) -> SourcesConfig:
        """Return the configuration.

        Raises:
            InputError: If an option cannot be used.
        """
        from qdeploy.serve.sources.config import SourcesConfig

        return SourcesConfig(
            watch=tuple(self.watch or ()),
            watch_new_only=self.watch_new_only,
            camera=tuple(self.camera or ()),
            every_s=self.every,
            answers=self.answers,
            mqtt=self.mqtt,
            model=self.source_model,
            top=self.top,
        )
