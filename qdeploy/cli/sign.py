"""The command ``qdeploy sign``: its options and the list of what it wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qdeploy.cli.options import Json
from qdeploy.cli.output import emit_json, say
from qdeploy.core.errors import InputError

KEYS = "Keys"


def sign_command(
    artifact: Annotated[
        Path | None,
        typer.Argument(metavar="ARTIFACT", help="A model file, or an export's folder for all in it."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="File of the private key, Ed25519 in PEM.", rich_help_panel=KEYS)
    ] = None,
    new_key: Annotated[
        Path | None,
        typer.Option(help="Make a private key with this name, and its public key NAME.pub.", rich_help_panel=KEYS),
    ] = None,
    json: Json = False,
) -> None:
    """Sign model files, so that devices open no others.

    The signature is a file of its own beside the model file, which stays as it is: copy both. Native libraries beside
    a model file are signed, too.
    """
    from qdeploy.core.artifact import model_files, read_artifact
    from qdeploy.core.signing import new_key as make_key
    from qdeploy.core.signing import sign
    from qdeploy.native.prebuilt import library_files, read_library

    if (artifact is None) != (key is None) or (key is None and new_key is None):
        raise InputError("a signature needs a model file and a `key`", fix="or make a key with `new_key`")
    public = make_key(new_key) if new_key else None
    signatures = []
    if artifact is not None and key is not None:
        read = [read_artifact(file, trusted=()) for file in model_files(artifact)]
        signatures = [sign(found.path, found.on_disk, key) for found in read]
        libraries = [(file, read_library(file, found, ())) for found in read for file in library_files(found.path)]
        signatures += [sign(file, data, key) for file, data in libraries]
    if json:
        made = {"key": str(new_key), "public_key": str(public)} if public else {}
        emit_json({**made, "signatures": [str(s) for s in signatures]})
        return
    if public:
        say(f"{new_key}: keep it secret; {public}: give it to whoever opens the files")
    for signature in signatures:
        say(f"{signature}: signed")
