"""The ``qdeploy`` command: runs a command line and turns whatever happens into one line and an exit code."""

from __future__ import annotations

import atexit
import os
import sys
from contextvars import copy_context
from itertools import takewhile
from typing import NoReturn

from qdeploy import __version__
from qdeploy.cli.early import start_early
from qdeploy.cli.streams import open_streams, output_is_dropped
from qdeploy.core.errors import QdeployError, for_command_line
from qdeploy.core.printable import printable

DEFECT = 70
"""What BSD's sysexits.h calls an internal software error: no verdict (1), no bad input (2), no success."""
INTERRUPTED = 130
TRACEBACK = "QDEPLOY_TRACEBACK"


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code.

    0 is done, 1 a negative verdict, 2 bad input, 70 a defect of qdeploy, 130 interrupted.
    """
    if "" in arguments:
        return _fail("an argument is empty; leave it out or give a value", 2)
    try:
        start_early(arguments)
        from qdeploy.cli.app import call

        return copy_context().run(call, arguments or ["--help"])  # so that what a verb switches ends with it
    except BaseException as error:
        cause = error.__context__ if isinstance(error, SystemExit) else error  # rich makes the one of the other
        if isinstance(cause, BrokenPipeError) and output_is_dropped():
            return 0  # whoever reads our output has enough, as in ``qdeploy predict ... | head``
        if isinstance(error, SystemExit) and not error.code:
            return 0  # a completion is printed; nothing else of ours ends so
        if _traceback_wanted(arguments):
            import traceback

            traceback.print_exception(error)
        return _fail(*_explained(error))


def _explained(error: BaseException) -> tuple[str, int]:
    """Return the line that says what happened, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, QdeployError):
        return for_command_line(str(error)), error.exit_code
    from typer import TyperException

    if isinstance(error, TyperException):
        from qdeploy.cli.familiar import HINTS, setting_hint

        option = getattr(error, "option_name", "")
        context = getattr(error, "ctx", None)
        hint = HINTS.get(option) or setting_hint(option, context)
        command = context.command_path if context else "qdeploy"
        return f"{error.format_message()}{f'; {hint}' if hint else ''} (see `{command} --help`)", 2
    if isinstance(error, MemoryError):
        return "not enough memory; use a smaller model or batch", 2
    if isinstance(error, RuntimeError) and type(error).__name__ == "OutOfMemoryError":  # torch's, not to be imported
        return "the device has not enough memory; use a smaller --batch-size or model", 2
    if isinstance(error, ImportError) and not (error.path or ".py").endswith(".py"):  # the system could not load it
        return f"a library cannot be loaded: {error}; allow more memory (ulimit -v), or install it again", 2
    if isinstance(error, OSError):
        return f"{error.filename or 'the system'}: {error.strerror or error}", 2
    return (
        f"this is a defect of qdeploy, not of your input: {type(error).__name__}: {error}; please report it with the "
        f"command line, what it prints with --traceback, and the version ({__version__})",
        DEFECT,
    )


def _traceback_wanted(arguments: list[str]) -> bool:
    return os.environ.get(TRACEBACK) == "1" or "--traceback" in takewhile(lambda word: word != "--", arguments)


def _fail(text: str, code: int) -> int:
    line = " ".join(word for word in text.replace("\n", " ").split(" ") if word)
    print(f"qdeploy: {printable(line)}", file=sys.stderr)
    return code


def main() -> None:
    """Entry point of the ``qdeploy`` script."""
    open_streams()
    _leave(run(sys.argv[1:]))


def _leave(code: int) -> NoReturn:
    """End the process without taking apart what the system frees at once.

    That would take a seventh of a cold ``predict``, and 0.8 s where torch is loaded.
    Threads that are left, as an interrupt leaves them, end with it. Ray and workers have processes of their own to end.
    """
    workers = sys.modules.get("multiprocessing")
    if "ray" not in sys.modules and not (workers and workers.active_children()):
        atexit._run_exitfuncs()
        try:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
            os._exit(code)
        except (OSError, ValueError):  # a full disk, say, or a closed stream; the usual way reports it
            pass
    sys.exit(code)
