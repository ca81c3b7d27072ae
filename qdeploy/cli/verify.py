"""The command ``qdeploy verify``: its options and its list of checks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qdeploy.cli.options import Json, ModelFile
from qdeploy.cli.output import Bar, emit_json, note, say
from qdeploy.cli.tables import print_finding
from qdeploy.core.errors import InputError, for_command_line

if TYPE_CHECKING:
    from qdeploy.checks.verify import Verification

MARKS = {True: "ok", False: "FAILED", None: "not here"}


def verify_command(
    artifact: ModelFile = None,
    data: Annotated[
        str | None, typer.Option(help="The data set it was made with: check its hash and splits too.")
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(help="Public key that must have signed the files; may be repeated.", show_default=False),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Run a native kit's goldens on a device: ARTIFACT is the kit's folder, COMMAND reaches the device (as "
            "'qemu-arm ./classify --photos') or is ssh://HOST/FOLDER.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Check everything about an artifact again: hashes, card, lineage, goldens.

    The exit code is 1 if a check fails.
    """
    path, result = _checked(artifact, data, key) if device is None else _on_device(artifact, data, key, device)
    if json:
        emit_json(result.to_dict())
    else:
        for check in result.checks:
            print_finding(MARKS[check.ok], f"{check.name}: {for_command_line(check.detail)}")
        failed = sum(c.ok is False for c in result.checks)
        unknown = sum(c.ok is None for c in result.checks)
        say(f"{path}: {len(result.checks)} checks, {failed} failed, {unknown} not possible here")
    return 0 if result.ok else 1


def _checked(artifact: Path | None, data: str | None, key: list[Path] | None) -> tuple[Path, Verification]:
    from qdeploy.checks.verify import verify
    from qdeploy.core.artifact import SHIPPED, newest_export

    path = artifact or newest_export() or SHIPPED
    if artifact is None:
        note(f"verifying {path}")
    with Bar("reading images") as bar:
        return path, verify(path, data, bar.update, keys=key)


def _on_device(kit: Path | None, data: str | None, key: list[Path] | None, device: str) -> tuple[Path, Verification]:
    from qdeploy.checks.device import verify_device

    if kit is None:
        raise InputError("`device` runs the goldens of a native kit; give the kit's folder, too")
    if data is not None or key is not None:
        raise InputError("`device` checks a device and nothing else", fix="leave out `data` and `key`")
    with Bar("on the device") as bar:
        return kit, verify_device(kit, device, bar.update)
