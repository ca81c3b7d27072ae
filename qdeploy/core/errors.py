"""The errors that qdeploy raises on purpose, by what the user can do about them.

An error says what happened (``what``), what was found instead (``found``) and what to do next (``fix``); programs read
these fields, and its text is the three in one line.

No text names an option of the command line. An argument or a field of the Python API that has an option of the same
name stands in backticks, alone as `max_drop` or with a value as `engine=openvino`, and whoever prints a text for a
command line calls ``for_command_line``, which makes --max-drop and --engine openvino of them. A field of a training
recipe has no option of its own and stands without backticks. A command stands in backticks with the program's name
and without options, as `qdeploy tune`, which stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

ImageReason = Literal[
    "not-found",
    "not-a-file",
    "unreadable",
    "empty",
    "too-large",
    "too-many-pixels",
    "unsupported-format",
    "unsupported-mode",
    "truncated",
    "damaged",
    "not-finite",
    "out-of-memory",
]
"""Why an image was refused, for programs; docs/checking.md says what each means."""
PASSING: frozenset[ImageReason] = frozenset({"unreadable", "out-of-memory"})
"""Reasons of the moment and not of the image: they are kept nowhere, and the image is tried again."""


class QdeployError(Exception):
    """Root of all errors that qdeploy raises on purpose.

    Args:
        what: What happened; where the other two are not given, the whole text.
        found: What was found where something else was expected.
        fix: What to do next.
    """

    exit_code = 2

    def __init__(self, what: str, *, found: object = None, fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.found = "" if found is None else str(found)
        self.fix = fix

    def __str__(self) -> str:
        found = f", found {self.found}" if self.found else ""
        return f"{self.what}{found}{'; ' if self.fix else ''}{self.fix}"


class InputError(QdeployError):
    """An argument, file or folder given by the user cannot be used."""


class ImageError(InputError):
    """A file is not an image that can be classified."""

    def __init__(self, what: str, reason: ImageReason = "damaged", *, found: object = None, fix: str = "") -> None:
        super().__init__(what, found=found, fix=fix)
        self.reason: ImageReason = reason


class DataError(InputError):
    """A data set is missing, empty or inconsistent."""


class ArtifactError(InputError):
    """A model file is damaged, of the wrong kind or of an unknown version."""


class NoCardError(ArtifactError):
    """A model file that qdeploy did not write."""


class MissingDependencyError(QdeployError):
    """This machine or installation lacks something.

    Args:
        what: What is lacking.
        found: What is there instead.
        fix: What to do about it.
        command: What to run in a shell to get it, in place of ``fix``.
    """

    def __init__(self, what: str, *, found: object = None, fix: str = "", command: str = "") -> None:
        super().__init__(what, found=found, fix=f"run: {command}" if command else fix)
        self.command = command


class EngineError(QdeployError):
    """An engine failed while it opened or ran a model on a machine that has all it needs."""

    exit_code = 1


class VerdictError(QdeployError):
    """The work ran and its result is negative: parity failed, accuracy or budget missed."""

    exit_code = 1


def for_command_line(text: str) -> str:
    """Return a text in which the fields in backticks are the options of the command line; see this module's text."""
    import re  # not at the top: `import qdeploy.core.errors` costs nothing

    def option(match: re.Match[str]) -> str:
        name, value = match[1].replace("_", "-"), match[2]
        return f"--{name}" if value is None else f"--{name} {value}"

    return re.sub(r"`([a-z][a-z0-9_]*)(?:=([^`]+))?`", option, text)


def one_line(error: BaseException, most: int = 300) -> str:
    """Return another library's message on one line, cut off where it is too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}..."


def near_miss(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'a'?)"`` for the nearest known words, or an empty text."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=2, cutoff=0.6)
    return " (did you mean " + " or ".join(f"'{c}'" for c in close) + "?)" if close else ""
