"""``qdeploy verify``"""

from __future__ import annotations

from pathlib import Path

import click

from qdeploy.cli.output import Bar, emit_json, note
from qdeploy.core.errors import for_command_line

MARKS = {True: "ok", False: "FAILED", None: "not here"}


@click.command("verify")
@click.argument("artifact", required=False, type=click.Path(path_type=Path))
@click.option("--data", help="The data set it was made with: check its hash and splits too.")
@click.option("--json", is_flag=True, help="Print the checks as one JSON document.")
def verify_command(artifact: Path | None, data: str | None, json: bool) -> int:
    """Check everything about an artifact again: hashes, card, lineage, goldens.

    ARTIFACT is a model file or an export's folder. Default: the newest export, else the model that ships in the
    package. The exit code is 1 if a check fails.
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
            print(f"{MARKS[check.ok]:>8}  {check.name}: {for_command_line(check.detail)}")
        failed = sum(c.ok is False for c in result.checks)
        unknown = sum(c.ok is None for c in result.checks)
        print(f"{path}: {len(result.checks)} checks, {failed} failed, {unknown} not possible here")
    return 0 if result.ok else 1
