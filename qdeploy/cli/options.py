"""Options that several verbs take, and the headings under which the help groups them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from qdeploy.cli.output import be_quiet

SPEED = "Speed"
EVERYWHERE = "Everywhere"
LIMITS = "Limits"
OUTPUT = "Output"
TRAINING = "Training"
WHERE = "Where it runs"
GOING_ON = "Folder, and going on"
NEWEST = "newest"
"""What ``--resume`` means when nothing follows it."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.", rich_help_panel=OUTPUT)]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show every column, in further tables.", rich_help_panel=OUTPUT)
]
Split = Literal["test", "val", "train", "all"]
ModelFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="ARTIFACT",
        help="A model file or an export's folder. Default: the newest export below ./exports, else the model that "
        "ships in the package.",
        show_default=False,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Change any other field of the recipe; may be repeated.",
        rich_help_panel=TRAINING,
    ),
]


def _quieten(wanted: bool) -> None:
    if wanted:
        be_quiet()


Quiet = Annotated[
    bool,
    typer.Option(
        *("--quiet", "-q"),
        callback=_quieten,
        help="Print only the result: no notes, no progress.",
        rich_help_panel=EVERYWHERE,
    ),
]
Traceback = Annotated[
    bool,
    typer.Option(
        "--traceback",
        help="After an error, show where in the program it arose.",
        rich_help_panel=EVERYWHERE,
    ),
]
"""Read by the last error handler from the arguments themselves: the error may be in the command line."""
_COMMON = {"quiet": Quiet, "traceback": Traceback}


def with_common_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Return a verb for Typer, which wants one parameter for each option.

    The options that every verb takes are added. A parameter whose type is a dataclass is replaced by its fields, so
    that two verbs share options, their defaults and their help.
    """
    hints = get_type_hints(verb, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb).parameters.values():
        group = groups.get(parameter.name)
        parameters += _fields(group) if group else [_named(parameter.name, parameter.default, hints[parameter.name])]
    parameters += [_named(name, False, kind) for name, kind in _COMMON.items()]

    @wraps(verb)
    def call(**given: Any) -> Any:
        for name in _COMMON:
            del given[name]
        for name, group in groups.items():
            given[name] = group(**{f.name: given.pop(f.name) for f in fields(group)})
        return verb(**given)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call


def _fields(group: Any) -> list[inspect.Parameter]:
    types = get_type_hints(group, include_extras=True)
    return [_named(f.name, f.default, types[f.name]) for f in fields(group)]


def _named(name: str, default: Any, kind: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
