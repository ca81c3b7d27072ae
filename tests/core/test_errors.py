from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import qdeploy
from qdeploy.cli.app import VERBS
from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED
from qdeploy.core.errors import ImageError, InputError, MissingDependencyError, QdeployError, for_command_line, one_line
from qdeploy.training.recipes import OPTIONS

PACKAGE = Path(qdeploy.__file__).parent
FIELD = re.compile(r"`([a-z][a-z0-9_]*)(?:=[^`]+)?`")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (InputError("all that is known"), "all that is known"),
        (InputError("`lr` must be positive", found=-1.5), "`lr` must be positive, found -1.5"),
        (InputError("a count is needed", found=0, fix="give one"), "a count is needed, found 0; give one"),
        (ImageError("is empty", "empty", fix="take another"), "is empty; take another"),
        (MissingDependencyError("no ray", command="pip install ray"), "no ray; run: pip install ray"),
    ],
)  # fmt: skip
def test_the_text_is_the_fields_in_one_line_also_in_another_process(error: QdeployError, says: str) -> None:
    assert str(error) == says
    sent = pickle.loads(pickle.dumps(error))
    assert (str(sent), vars(sent)) == (says, vars(error))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("`max_drop` must be positive", "--max-drop must be positive"),
        ("use `engine=openvino-bf16` or lower `lr`", "use --engine openvino-bf16 or lower --lr"),
        ("give another `out`: `out=/tmp/a b=c`", "give another --out: --out /tmp/a b=c"),
        ("`qdeploy tune` writes it", "`qdeploy tune` writes it"),
        ("a lone ` and another `", "a lone ` and another `"),
    ],
)  # fmt: skip
def test_fields_become_options_and_commands_stay(text: str, says: str) -> None:
    assert for_command_line(text) == says


def test_a_library_s_message_is_one_line() -> None:
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("x" * 400)) == "x" * 300 + "..."


def texts() -> Iterator[tuple[str, str]]:
    """Give the file and every text outside of the command line that is no docstring; ``{}`` stands for a value."""
    for file in PACKAGE.rglob("*.py"):
        if file.is_relative_to(PACKAGE / "cli"):
            continue
        tree = ast.parse(file.read_text())
        passed = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                passed |= {id(part) for part in node.values}
                parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
                yield file.relative_to(PACKAGE).as_posix(), "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in passed:
                yield file.relative_to(PACKAGE).as_posix(), node.value


def test_only_the_command_line_speaks_of_its_options() -> None:
    """What is passed to a process is an option and nothing else; pip has options of its own, and CSS variables."""
    option = re.compile(r"(^|[\s(`'\"])--[a-z{][a-z{}-]*([\s`'\"),.:;]|$)")
    spoken = {
        (file, text)
        for file, text in texts()
        if option.search(re.sub(r"var\(--[a-z-]+\)", "", text)) and not re.fullmatch(r"--[a-z-]+", text)
        if file not in ("core/errors.py", "core/page_style.py") and not text.startswith("pip install ")
    }
    assert not spoken


def test_every_field_in_backticks_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        run([verb, "--help"])
    options = set(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))
    found = [(file, name) for file, text in texts() for name in FIELD.findall(text)]
    found += [("training/recipes.py", name) for name in OPTIONS]
    named = {(file, for_command_line(f"`{name}`")) for file, name in found}
    assert len(named) > 20
    assert {(file, option) for file, option in named if option not in options} == set()


def test_a_command_says_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(SHIPPED / "model.int8.onnx"), "--batch-size", "0"]) == 2
    assert capsys.readouterr().err == "qdeploy: --batch-size must be between 1 and 4096, found 0\n"
