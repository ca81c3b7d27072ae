"""The ``qdeploy`` command: one verb a file, imported when called, and heavy rooms only inside it."""

from __future__ import annotations

import atexit
import importlib
import io
import os
import sys
from typing import NoReturn

import click

from qdeploy import __version__
from qdeploy.core.errors import QdeployError, for_command_line, near_miss

INTERRUPTED = 130


VERBS = (
    *("train", "export", "quantize", "predict", "bench", "eval", "tune", "sweep"),
    *("models", "data", "inspect", "verify", "diff", "lint", "doctor"),
)
"""In the order of the help; each is a module of this package, imported when it is asked for."""


class _Verbs(click.Group):
    """Imports the one verb that is called, keeps their order, and suggests the nearest for an unknown one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        return getattr(importlib.import_module(f"qdeploy.cli.{cmd_name}"), f"{cmd_name}_command")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise click.UsageError(f"there is no command '{args[0]}'{near_miss(args[0], VERBS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs)
@click.version_option(__version__, message="qdeploy %(version)s")
def app() -> None:
    """Small image classifiers, from a folder of images to a verified INT8 model on a device."""


def run(arguments: list[str]) -> int:
    """Run a command line and give its exit code: 0 done, 1 negative verdict, 2 bad input, 130 interrupted."""
    if "" in arguments:
        return _fail("an argument is empty; leave it out or give a value", 2)
    try:
        code = app.main(args=arguments or ["--help"], prog_name="qdeploy", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", INTERRUPTED)
    except QdeployError as error:
        return _fail(for_command_line(str(error)), error.exit_code)
    except click.ClickException as error:
        return _fail(f"{error.format_message()} (see `qdeploy --help`)", 2)
    except (BrokenPipeError, SystemExit):  # click ends so, e.g. `qdeploy predict ... | head`; nothing of ours does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        return _fail("not enough memory; use a smaller model or batch", 2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # of torch, which must not be imported here
            raise
        return _fail("the device has not enough memory; use a smaller --batch-size or model", 2)
    except OSError as error:
        return _fail(f"{error.filename or 'the system'}: {error.strerror or error}", 2)


def _fail(text: str, code: int) -> int:
    print(f"qdeploy: {' '.join(text.split())}", file=sys.stderr)
    return code


def main() -> None:
    """Entry point of the ``qdeploy`` script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file's name may be any bytes
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
