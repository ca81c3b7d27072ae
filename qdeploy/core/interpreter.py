"""The command with which qdeploy starts a fresh Python process."""

from __future__ import annotations

import sys


def python_command(code: str) -> tuple[str, ...]:
    """Return the command that runs some code in a fresh interpreter; arguments may follow.

    Neither ``-m`` nor a plain ``-c`` will do: they let a file of the user's folder, a numpy.py say, be imported. The
    folder stands in the path as an empty name, unless ``PYTHONSAFEPATH`` keeps it out (``-P``, from Python 3.11 on).
    """
    return sys.executable, "-c", f"import sys; sys.path[:] = filter(None, sys.path); {code}"
