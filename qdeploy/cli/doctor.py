"""``qdeploy doctor``"""

from __future__ import annotations

import click

from qdeploy.cli.output import emit_json
from qdeploy.core.errors import for_command_line


@click.command("doctor")
@click.option("--json", is_flag=True, help="Print the findings as one JSON document.")
def doctor_command(json: bool) -> int:
    """Tell what this machine can run and what to install.

    Nothing is changed. The exit code is 1 if something is broken; what is only missing is no error.
    """
    from qdeploy.checks.doctor import diagnose

    result = diagnose()
    if json:
        emit_json(result.to_dict())
    else:
        for check in result.checks:
            print(f"{check.status:>8}  {check.name}: {for_command_line(check.detail)}")
            if check.fix:
                print(f"{'':>10}{for_command_line(check.fix)}")
    return 0 if result.ok else 1
