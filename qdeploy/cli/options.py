"""Options that several verbs take, and the headings under which the help groups them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import typer

from qdeploy.cli.output import be_quiet
from qdeploy.core.errors import InputError

SPEED = "Speed"
EVERYWHERE = "Everywhere"
LIMITS = "Limits"
OUTPUT = "Output"
TRAINING = "Training"
WHERE = "Where it runs"
GOING_ON = "Folder, and going on"
NEWEST = "newest"
"""What ``--resume`` means when nothing follows it."""

MB = 2**20

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.", rich_help_panel=OUTPUT)]
Formats = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="Take only these: jpeg, png, webp, bmp, gif, tiff, ppm, avif. Default: all.",
        show_default=False,
    ),
]
Abstain = Annotated[
    bool,
    typer.Option("--abstain/--no-abstain", help="Whether what the file's threshold calls unknown gets no label."),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show every column, in further tables.", rich_help_panel=OUTPUT)
]
Force = Annotated[bool, typer.Option("--force", help="Replace the file of --csv if it exists.", rich_help_panel=OUTPUT)]
Threads = Annotated[
    int | None,
    typer.Option(
        help="CPU threads of training. Default: OMP_NUM_THREADS, else the fastest number, measured.",
        rich_help_panel=WHERE,
    ),
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


def bytes_of(mb: float, option: str, least: float, most: int) -> int:
    """Return how many bytes so many MiB are.

    Raises:
        InputError: If there are fewer than ``least`` MiB, more than ``most``, or the number is none.
    """
    if not least <= mb <= most:
        raise InputError(f"`{option}` must be between {least} and {most} MiB", found=mb)
    return int(mb * MB)


def split_names(text: str | None) -> tuple[str, ...] | None:
    """Return the names of a list with commas, or None where there is none."""
    return None if text is None else tuple(text.split(","))


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
_ALSO_OPTIONS = {
    "artifact": "--model",
    "artifacts": "--model",
    "file": "--model",
    "export": "--model",
    "run": "--model",
    "data": "--data",
}
"""Arguments that hands also write as options, and how, in every verb that takes them."""
_TWIN = "_option"


def with_common_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Return a verb for Typer, which wants one parameter for each option.

    The options that every verb takes are added, and an option to every argument of ``_ALSO_OPTIONS``. A parameter whose
    type is a dataclass is replaced by its fields, so that two verbs share options, their defaults and their help.
    """
    hints = get_type_hints(verb, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    twins: dict[str, _Twin] = {}
    for parameter in inspect.signature(verb).parameters.values():
        name, default, kind = parameter.name, parameter.default, hints[parameter.name]
        if group := groups.get(name):
            parameters += _fields(group)
        elif name in _ALSO_OPTIONS and isinstance(get_args(kind)[-1], typer.models.ArgumentInfo):
            twin = twins[name] = _Twin(name, kind, required=default is inspect.Parameter.empty)
            parameters += [_named(name, None, kind), _named(name + _TWIN, None, twin.option())]
        else:
            parameters.append(_named(name, default, kind))
    parameters += [_named(name, False, kind) for name, kind in _COMMON.items()]

    @wraps(verb)
    def call(**given: Any) -> Any:
        for name in _COMMON:
            del given[name]
        _settle(twins, given)
        for name, group in groups.items():
            given[name] = group(**{f.name: given.pop(f.name) for f in fields(group)})
        return verb(**given)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call


class _Twin:
    """The option that says the same as an argument."""

    def __init__(self, name: str, kind: Any, *, required: bool) -> None:
        self.name, self.required = name, required
        self.flag = _ALSO_OPTIONS[name]
        self._type, info = get_args(kind)
        self.metavar = str(info.metavar or name.upper())

    def _plain(self) -> str:
        """Return the metavar without what says that it may be left out or repeated."""
        name = self.metavar.removesuffix("...")
        return name[1:-1] if name.startswith("[") and name.endswith("]") else name

    def option(self) -> Any:
        """Return the option's type for Typer."""
        several = "; may be repeated" if self.name.endswith("s") else ""
        what = self.name.upper()
        text = f"The same as {self._plain()}{several}."
        return Annotated[self._type | None, typer.Option(self.flag, metavar=what, help=text, show_default=False)]


def _settle(twins: Mapping[str, _Twin], given: dict[str, Any]) -> None:
    """Put what was given as an option in the place of its argument.

    Raises:
        InputError: If something is given twice, or not at all and needed.
    """
    options = {name: given.pop(name + _TWIN) for name in twins}
    if {"artifact", "data"} <= twins.keys() and options["artifact"] and given["artifact"] and not given["data"]:
        given["artifact"], given["data"] = None, given["artifact"]  # `eval --model FILE DATA`
    for name, twin in twins.items():
        if given[name] and options[name]:
            raise InputError(f"{twin.metavar} is given twice, with {twin.flag} and without; give it once")
        given[name] = given[name] or options[name]
        if twin.required and not given[name]:
            raise InputError(f"Missing argument '{twin.metavar}'")


def _fields(group: Any) -> list[inspect.Parameter]:
    types = get_type_hints(group, include_extras=True)
    return [_named(f.name, f.default, types[f.name]) for f in fields(group)]


def _named(name: str, default: Any, kind: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
