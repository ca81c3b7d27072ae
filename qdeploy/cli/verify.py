"""The command ``qdeploy verify``: its options and its list of checks."""

from __future__ import annotations

from typing import Annotated

import typer

from qdeploy.cli.options import Json, ModelFile
from qdeploy.cli.output import Bar, emit_json, note
from qdeploy.cli.tables import print_finding

MARKS = {True: "ok", False: "FAILED", None: "not here"}


def verify_command(
    artifact: ModelFile = None,
    data: Annotated[
        str | None, typer.Option(help="The data set it was made with: check its hash and splits too.")
    ] = None,
    json: Json = False,
) -> int:
    """Check everything about an artifact again: hashes, card, lineage, goldens.

    The exit code is 1 if a check fails.
    """
    from qdeploy.checks.verify import verify
    from qdeploy.core.artifact import SHIPPED, newest_export

    path = artifact or newest_export() or SHIPPED
    if artifact is None:
        note(f"verifying {path}")
    with Bar("reading images") as bar:
        result = verify(path, data, bar.update)
    if json:
        emit_json(result.to_dict())
    else:
        for check in result.checks:
            print_finding(MARKS[check.ok], f"{check.name}: {check.detail}")
        failed = sum(c.ok is False for c in result.checks)
        unknown = sum(c.ok is None for c in result.checks)
        print(f"{path}: {len(result.checks)} checks, {failed} failed, {unknown} not possible here")
    return 0 if result.ok else 1
