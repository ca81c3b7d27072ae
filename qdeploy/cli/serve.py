"""The command ``qdeploy serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qdeploy.cli.collect_options import CollectOptions
from qdeploy.cli.options import OUTPUT, SPEED, Abstain, Formats, bytes_of, split_names
from qdeploy.cli.output import emit_json, extra_needed, note, quiet, say
from qdeploy.cli.source_options import SourceOptions
from qdeploy.core.errors import InputError

ADDRESS = "Address"
PATIENCE = "Limits"
MOST_TOKEN_BYTES = 64 * 1024


def serve_command(
    artifacts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[[NAME=]ARTIFACT]...",
            help="Model files or exports' folders; those of one name are its versions 1, 2, ... Default: the newest "
            "export below ./exports, else the model that ships in the package.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that others reach needs a token.", rich_help_panel=ADDRESS)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", rich_help_panel=ADDRESS)] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="QDEPLOY_TOKEN",
            help="Secret of at least 16 characters that clients must send.",
            rich_help_panel=ADDRESS,
        ),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File that holds the secret on its first line.", rich_help_panel=ADDRESS)
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="What executes the files. Default: as tuned, else ort.", rich_help_panel=SPEED),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads of one inference. Default: as tuned, else 1 for small models.", rich_help_panel=SPEED
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(help="Processes; one uses all cores for its inferences.", rich_help_panel=SPEED),
    ] = 1,
    max_batch: Annotated[
        int | None,
        typer.Option(
            help="Waiting requests that one inference answers. Default: 4 for small models, else 1.",
            rich_help_panel=SPEED,
        ),
    ] = None,
    queue: Annotated[
        int, typer.Option(help="Requests that may wait; more get status 503.", rich_help_panel=PATIENCE)
    ] = 256,
    deadline: Annotated[float, typer.Option(help="Seconds that a request may wait.", rich_help_panel=PATIENCE)] = 10.0,
    max_body: Annotated[float, typer.Option(help="Largest request in MiB.", rich_help_panel=PATIENCE)] = 32.0,
    drain_delay: Annotated[
        float,
        typer.Option(help="Seconds of service after SIGTERM, for load balancers.", rich_help_panel=PATIENCE),
    ] = 0.0,
    formats: Formats = None,
    abstain: Abstain = True,
    drift_window: Annotated[
        int, typer.Option(help="Answers compared at a time with those to the validation images; 0: none.")
    ] = 500,
    trusted_key: Annotated[
        list[Path] | None,
        typer.Option(help="Open only files that this public key signed; may be repeated.", show_default=False),
    ] = None,
    selftest: Annotated[bool, typer.Option(help="Check the models' golden inputs first.")] = True,
    report: Annotated[
        Path | None, typer.Option(help="Write the report here when the server stops.", rich_help_panel=OUTPUT)
    ] = None,
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="Log every request, not failures only.", rich_help_panel=OUTPUT)
    ] = False,
    *,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print the address as a JSON document when ready.", rich_help_panel=OUTPUT),
    ] = False,
    collected: CollectOptions,
    sources: SourceOptions,
) -> int:
    """Answer over HTTP, with a page to try and figures while it runs.

    Speaks the Open Inference Protocol, version 2, and takes image files at /predict. The log is JSON on stderr.
    """
    with extra_needed():
        from qdeploy.serve import ServeConfig, serve

    config = ServeConfig(
        host=host,
        port=port,
        token=token if token_file is None else _secret(token_file),
        engine=engine,
        threads=threads,
        workers=workers,
        queue=queue,
        deadline_s=deadline,
        max_batch=max_batch,
        max_body_bytes=bytes_of(max_body, "max_body", 0.001, 2048),
        drain_delay_s=drain_delay,
        formats=split_names(formats),
        abstain=abstain,
        drift_window=drift_window,
        trusted_keys=tuple(trusted_key) if trusted_key else None,
        selftest=selftest,
        log_requests=log_requests,
        report=report,
        collect=collected.config(),
        sources=sources.config(),
    )
    if not config.local:
        note(f"{host} is reached without encryption: put a proxy with TLS in front of it")
    serve(artifacts or (), config, quiet=quiet(), started=_tell_json if json else _tell)
    return 0


def _tell(url: str) -> None:
    say(f"serving on {url}")


def _tell_json(url: str) -> None:
    emit_json({"url": url})


def _secret(path: Path) -> str:
    """Return the first line of a file."""
    try:
        with path.open("rb") as stream:
            return stream.read(MOST_TOKEN_BYTES).decode().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the token file {path} cannot be read: {error}") from error
