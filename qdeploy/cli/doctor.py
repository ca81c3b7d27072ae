"""The command ``qdeploy doctor``: its list of findings."""

from __future__ import annotations

from qdeploy.cli.options import Json
from qdeploy.cli.output import emit_json
from qdeploy.cli.tables import print_finding


def doctor_command(json: Json = False) -> int:
    """Tell what this machine can run and what to install.

    Nothing is changed. The exit code is 1 if something is broken; what is only missing is no error.
    """
    from qdeploy.checks.doctor import diagnose

    result = diagnose()
    if json:
        emit_json(result.to_dict())
    else:
        for check in result.checks:
            print_finding(check.status, f"{check.name}: {check.detail}")
            if check.fix:
                print_finding("", check.fix)
    return 0 if result.ok else 1
