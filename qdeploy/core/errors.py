"""What can go wrong, by what the user can do about it.

Every text says what happened, what was found, and what to do next, in one line.
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
]
"""Why an image was refused, for programs; docs/checking.md says what each means."""


class QdeployError(Exception):
    """Root of all errors that qdeploy raises on purpose."""

    exit_code = 2


class InputError(QdeployError):
    """An argument, file or folder given by the user cannot be used."""


class ImageError(InputError):
    """A file is not an image that can be classified."""

    def __init__(self, text: str, reason: ImageReason = "damaged") -> None:
        super().__init__(text)
        self.reason: ImageReason = reason


class DataError(InputError):
    """A data set is missing, empty or inconsistent."""


class ArtifactError(InputError):
    """A model file is damaged, of the wrong kind or of an unknown version."""


class NoCardError(ArtifactError):
    """A model file that qdeploy did not write."""


class MissingDependencyError(QdeployError):
    """This machine or installation lacks something; the text names what to install."""


class VerdictError(QdeployError):
    """The work ran and its result is negative: parity failed, accuracy or budget missed."""

    exit_code = 1


def near_miss(word: str, known: Iterable[str]) -> str:
    """Give ``" (did you mean 'a'?)"`` for the nearest known words, or an empty text."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=2, cutoff=0.6)
    return " (did you mean " + " or ".join(f"'{c}'" for c in close) + "?)" if close else ""
