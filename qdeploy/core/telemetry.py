"""Switches off the usage events that libraries used here would send to their makers.

OpenVINO has no variable for it; ``qdeploy.runtime.engines.openvino_session`` opens it without the part that sends.
"""

from __future__ import annotations

import os

SWITCHES = {
    "ONNX Runtime": {"ORT_DISABLE_TELEMETRY": "1", "ORT_TELEMETRY_DISABLED": "1"},
    "Ray": {"RAY_USAGE_STATS_ENABLED": "0"},
}
"""Environment variables that switch off each library's usage events.

ONNX Runtime reads one of the two, depending on its version, when it is loaded. From 1.32 on it otherwise keeps events
below ``~/.cache/Microsoft`` and sends them from every process that opens a model.
"""


def switch_off() -> None:
    """Set the variables of each library of which the user has set none: then the choice is theirs."""
    for variables in SWITCHES.values():
        if not any(name in os.environ for name in variables):
            os.environ.update(variables)


def set_by_user() -> dict[str, dict[str, str]]:
    """Return, for each library whose variables are not as ``switch_off`` sets them, those that are set."""
    found = {of: {n: os.environ[n] for n in variables if n in os.environ} for of, variables in SWITCHES.items()}
    return {of: values for of, values in found.items() if values != SWITCHES[of]}
