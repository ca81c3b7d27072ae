"""The program: its verbs, each imported when it is called, and the options that every verb takes."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Annotated, Any

import typer

from qdeploy import __version__
from qdeploy.cli.familiar import in_our_words
from qdeploy.cli.options import NEWEST, Quiet, Traceback, with_common_options
from qdeploy.core.errors import InputError, near_miss

VERBS = {
    "train": "Train a model and keep its best weights, log and curves.",
    "export": "Export a run to ONNX and INT8, checked after every step.",
    "quantize": "Make an INT8 model of a float ONNX file from elsewhere.",
    "calibrate": "Fit a model file's confidence to data.",
    "adopt": "Make a float model file of an ONNX file from elsewhere.",
    "kit": "Make folders with which other programs run an export.",
    "predict": "Classify images.",
    "bench": "Measure latency, throughput, memory and start-up.",
    "serve": "Answer over HTTP, with a page to try and figures while it runs.",
    "eval": "Measure the accuracy of a model file on a data set.",
    "explain": "Show where in an image a model finds its answer.",
    "tune": "Find the fastest way to run a model on this machine.",
    "sweep": "Train, export and measure many models.",
    "models": "List every model with its parameters.",
    "data": "Check a data set.",
    "review": "Label collected images on a page, and sort them by class.",
    "inspect": "Verify a model file's checksum and show its card.",
    "verify": "Check everything about an artifact again.",
    "sign": "Sign model files, so that devices open no others.",
    "encrypt": "Encrypt a model file against a stolen disk.",
    "diff": "Explain how two artifacts differ.",
    "lint": "Tell which runtimes will take an ONNX file.",
    "doctor": "Tell what this machine can run and what to install.",
}
"""Verbs in the order of the help, with the first sentence of each: the list is shown without importing any."""
HELP = {"help_option_names": ["-h", "--help"]}
COMPLETE = "_QDEPLOY_COMPLETE"
"""Set by the shell when it asks for completions."""


def call(arguments: Sequence[str]) -> int:
    """Run a command line and return the exit code of its verb; errors are raised as they are."""
    if COMPLETE in os.environ:
        typer.main.get_command(_callable(VERBS))(prog_name="qdeploy")  # answers the shell, and exits
    flags = list(takewhile(lambda word: word.startswith("-"), arguments))
    verb = next(iter(arguments[len(flags) :]), None)
    if verb is None or not {"--help", "-h"}.isdisjoint(flags):
        program = _listed()
    elif verb in VERBS:
        program = _callable([verb])
    else:
        raise InputError(f"there is no command '{verb}'{near_miss(verb, VERBS)} (see `qdeploy --help`)")
    command = typer.main.get_command(program)
    try:
        words = in_our_words(newest_named(arguments), command, verb)
        with command.make_context("qdeploy", words) as context:
            code = command.invoke(context)
    except typer.Exit as end:  # after --help and --version
        return end.exit_code
    return code if isinstance(code, int) else 0


def _callable(verbs: Iterable[str]) -> typer.Typer:
    """Build the program with some verbs: one is enough to call it, and is there sooner."""
    program = typer.Typer(rich_markup_mode="rich", add_completion=COMPLETE in os.environ, context_settings=HELP)
    program.callback()(_qdeploy)
    for verb in verbs:
        function = getattr(importlib.import_module(f"qdeploy.cli.{verb}"), f"{verb}_command")
        program.command(verb, help=_paragraphs(function))(with_common_options(function))
    return program


def _paragraphs(function: Callable[..., Any]) -> str:
    """Return a docstring with a line a paragraph: its line ends are not those of a terminal."""
    return "\n\n".join(" ".join(part.split()) for part in (function.__doc__ or "").split("\n\n"))


def _listed() -> typer.Typer:
    """Build the program with the names of all verbs, to show them; none is imported, nor rich, which takes as long."""
    program = typer.Typer(rich_markup_mode=None, context_settings=HELP)
    program.callback()(_qdeploy)
    for verb, line in VERBS.items():
        program.command(verb, help=line)(lambda: None)
    return program


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"qdeploy {__version__}")
        raise typer.Exit


def _qdeploy(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Small image classifiers, from a folder of images to a verified INT8 model on a device."""


def newest_named(arguments: Sequence[str]) -> list[str]:
    """Write out what ``--resume`` means where no value follows: Typer knows no option whose value may be left out."""
    following = [*arguments[1:], "-"]
    return [
        f"{word}={NEWEST}" if word == "--resume" and after.startswith("-") else word
        for word, after in zip(arguments, following, strict=True)
    ]
