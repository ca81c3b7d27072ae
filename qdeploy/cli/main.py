"""The ``qdeploy`` command: one verb a file, heavy rooms imported only inside a verb."""

from __future__ import annotations

import os
import sys

import typer
from typer.exceptions import TyperException

from qdeploy import __version__
from qdeploy.cli.bench import bench_command
from qdeploy.cli.data import data_command
from qdeploy.cli.export import export_command
from qdeploy.cli.inspect import inspect_command
from qdeploy.cli.models import models_command
from qdeploy.cli.predict import predict_command
from qdeploy.cli.train import train_command
from qdeploy.core.errors import QdeployError

INTERRUPTED = 130
"""Exit code after Ctrl-C; Typer turns the interrupt into it."""

app = typer.Typer(
    name="qdeploy",
    help="Small image classifiers, from a folder of images to a verified INT8 model on a device.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("train")(train_command)
app.command("export")(export_command)
app.command("predict")(predict_command)
app.command("bench")(bench_command)
app.command("models")(models_command)
app.command("data")(data_command)
app.command("inspect")(inspect_command)


def _show_version(value: bool) -> None:
    if value:
        print(f"qdeploy {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def run(arguments: list[str]) -> int:
    """Run a command line and give its exit code: 0 done, 1 negative verdict, 2 bad input, 130 interrupted."""
    if "" in arguments:
        return _fail("an argument is empty; leave it out or give a value", 2)
    try:
        result = typer.main.get_command(app).main(
            args=arguments or ["--help"], prog_name="qdeploy", standalone_mode=False
        )
        code = result if isinstance(result, int) else 0
        return _fail("interrupted", code) if code == INTERRUPTED else code
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED)
    except QdeployError as error:
        return _fail(str(error), error.exit_code)
    except TyperException as error:
        text = error.format_message()
        return 0 if not text else _fail(f"{text} (see `qdeploy --help`)", 2)
    except BrokenPipeError:  # e.g. `qdeploy predict ... | head`
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
    sys.exit(run(sys.argv[1:]))
