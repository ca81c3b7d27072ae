"""The command ``qdeploy encrypt``: its options and what it wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from qdeploy.cli.options import Json
from qdeploy.cli.output import emit_json, say
from qdeploy.core.errors import InputError

KEYS = "Keys"


def encrypt_command(
    artifact: Annotated[Path | None, typer.Argument(metavar="ARTIFACT", help="A model file.")] = None,
    key: Annotated[Path | None, typer.Option(help="File of the key.", rich_help_panel=KEYS)] = None,
    new_key: Annotated[Path | None, typer.Option(help="Make a key with this name.", rich_help_panel=KEYS)] = None,
    out: Annotated[Path | None, typer.Option(help="The encrypted file, a new one.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Encrypt a model file against a stolen disk.

    It is opened like any other where QDEPLOY_MODEL_KEY names the key's file, or QDEPLOY_MODEL_KEY_COMMAND a command
    that prints the key, and decrypted to memory alone.
    """
    from qdeploy.core.artifact import read_artifact
    from qdeploy.core.encryption import encrypted, new_model_key, read_model_key
    from qdeploy.core.files import write_bytes

    if not (artifact is None) == (key is None) == (out is None) or (key is None) == (new_key is None):
        raise InputError("an encryption needs a model file, a `key` and `out`", fix="or make a key with `new_key`")
    if new_key:
        new_model_key(new_key)
        said = f"{new_key}: keep it secret, and not beside the file"
    if artifact and key and out:
        found = read_artifact(artifact, trusted=())
        found.require_plain("a second encryption")
        if os.path.lexists(out):
            raise InputError(f"{out} exists", fix="give another name with `out`")
        write_bytes(out, encrypted(found.data, read_model_key(key)))
        said = f"{out}: encrypted"
    if json:
        emit_json({"key": str(new_key)} if new_key else {"encrypted": str(out)})
    else:
        say(said)
