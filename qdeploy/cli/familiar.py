"""Words of other programs for what qdeploy calls otherwise: taken as its own, or answered with the right one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

OURS = {
    "--batch": "--batch-size",
    "--learning-rate": "--lr",
    "--lr0": "--lr",
    "--weights": "--model",
    "--from": "--weights",
    "--output": "--out",
    "-o": "--out",
    "--imgsz": "--set input_size",
    "--img-size": "--set input_size",
}
"""What other programs call an option that has the same meaning, and what a setting of a recipe."""
HINTS = {
    "--imgsz": "the size of the images is in the model",
    "--img-size": "the size of the images is in the model",
    "--weights": "every model starts anew here; `qdeploy train --weights` begins with trained ones",
    "--source": "give the images without an option",
    "--verbose": "this command shows all it knows; --json has every figure",
    "-v": "this command shows all it knows; --json has every figure",
}
"""What is said of an option that a verb does not know."""
_NO_SAME = {"sweep": {"--weights"}}
"""Where a word would mean something else."""


def in_our_words(arguments: Sequence[str], program: Any, verb: str | None) -> list[str]:
    """Return the words of a command line with the options of other programs as qdeploy calls them.

    Args:
        arguments: The words.
        program: What parses them; its commands know their options.
        verb: The command that is called.
    """
    command = getattr(program, "commands", {}).get(verb)
    known = {name for p in command.params for name in p.opts} if command else set()
    renamed = {
        theirs: ours
        for theirs, ours in OURS.items()
        if theirs not in known and ours.split()[0] in known and theirs not in _NO_SAME.get(verb or "", ())
    }
    return list(_renamed(iter(arguments), renamed))


def setting_hint(option: str, context: Any) -> str:
    """Return how to set what is no option but a field of a training recipe; nothing for other words and other verbs."""
    command = getattr(context, "command", None)
    if not any("--set" in p.opts for p in getattr(command, "params", ())):
        return ""
    try:
        from qdeploy.training.recipes import TrainConfig
    except ImportError:  # it cannot train
        return ""
    name = option.removeprefix("--").replace("-", "_")
    return f"say --set {name}=VALUE" if name in TrainConfig.__dataclass_fields__ else ""


def _renamed(words: Iterator[str], renamed: dict[str, str]) -> Iterator[str]:
    for word in words:
        name, equals, value = word.partition("=")
        option, _, field = renamed.get(name, "").partition(" ")
        if not option:
            yield word
        elif field:
            yield option
            yield f"{field}={value if equals else next(words, '')}"
        else:
            yield f"{option}{equals}{value}"
        if word == "--":
            yield from words
