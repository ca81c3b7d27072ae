"""Keeps the libraries that qdeploy uses from sending usage events to their makers."""

from __future__ import annotations

import os

VARIABLES = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED")
"""ONNX Runtime reads one of them, depending on its version, when it is loaded. From 1.32 on it otherwise keeps events
below ``~/.cache/Microsoft`` and sends them from every process that opens a model."""


def switch_off() -> None:
    """Set the variables, unless the user has set one: then the choice is theirs."""
    if not any(name in os.environ for name in VARIABLES):
        os.environ.update(dict.fromkeys(VARIABLES, "1"))
