"""The command line itself: help, completion, what every verb takes, and what is said when the program is at fault."""

from __future__ import annotations

import importlib
import os
import pty
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from qdeploy import __version__
from qdeploy.checks import doctor
from qdeploy.cli.app import VERBS
from qdeploy.cli.main import DEFECT, run

ROOT = Path(__file__).parents[2]
BAG = str(ROOT / "examples" / "bag.png")
QDEPLOY = [sys.executable, "-m", "qdeploy"]
Capture = pytest.CaptureFixture[str]


def broken() -> None:
    """Fail as no one foresaw."""
    raise TypeError("no\nsuch   luck")


@pytest.fixture
def defective(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program whose ``doctor`` has a defect."""
    monkeypatch.setattr(doctor, "diagnose", broken)


def test_a_defect_is_one_line_and_exit_code_70(defective: None, capsys: Capture) -> None:
    assert run(["doctor"]) == DEFECT == 70
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("qdeploy: this is a defect of qdeploy, not of your input: TypeError: no such luck; ")
    assert all(word in line for word in ("report it", "command line", "--traceback", __version__))


@pytest.mark.parametrize("arguments", [["--traceback", "doctor"], ["doctor", "--json", "--traceback"]], ids=str)
def test_traceback_shows_where_it_arose(arguments: list[str], defective: None, capsys: Capture) -> None:
    assert run(arguments) == DEFECT
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert any("in broken" in line for line in lines)
    assert lines[-1].startswith("qdeploy: this is a defect of qdeploy")


def test_traceback_by_the_environment_and_for_what_is_handled(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    bad_input = ["inspect", "nowhere"], ["eval", "--split", "tset"]
    for value, shown in ("1", True), ("0", False), ("", False):
        monkeypatch.setenv("QDEPLOY_TRACEBACK", value)
        for arguments in bad_input:
            assert run(arguments) == 2
            err = capsys.readouterr().err
            assert ("Traceback" in err) == shown
            assert err.splitlines()[-1].startswith("qdeploy: ")
    monkeypatch.delenv("QDEPLOY_TRACEBACK")
    assert run(["inspect", "--", "--traceback"]) == 2  # here it is a file's name
    assert "Traceback" not in capsys.readouterr().err


def test_a_library_that_ends_the_process_is_a_defect(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda: sys.exit(1))
    assert run(["doctor"]) == DEFECT
    assert "SystemExit: 1" in capsys.readouterr().err


def test_a_process_with_a_broken_library(tmp_path: Path) -> None:
    (tmp_path / "PIL").mkdir()
    (tmp_path / "PIL" / "__init__.py").write_text("import sys\nsys.nothing\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    done = subprocess.run([*QDEPLOY, "-q", "predict", BAG], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (DEFECT, "")
    (line,) = done.stderr.splitlines()
    assert "AttributeError: module 'sys' has no attribute 'nothing'" in line


@pytest.mark.parametrize("arguments", [["-q", "predict"], ["predict", "--quiet"]], ids=str)
def test_quiet_leaves_the_result_and_errors(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*arguments, BAG, BAG]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert err == ""
    (tmp_path / "text.png").write_text("no image")
    assert run([*arguments, BAG, "text.png"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("qdeploy: text.png: ")
    assert run(["predict", BAG, BAG]) == 0  # the next command line is as loud as ever
    assert "2 images, " in capsys.readouterr().err


def test_a_verb_heeds_verbose_or_refuses_it(capsys: Capture) -> None:
    assert run(["doctor", "-v"]) == 2
    assert "No such option: -v" in capsys.readouterr().err


def test_the_list_of_verbs_fits_and_is_the_package(capsys: Capture) -> None:
    for arguments in [], ["--help"], ["--help", "predict"]:
        assert run(arguments) == 0
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= 80
        for verb, line in VERBS.items():
            assert re.search(rf"^  {verb} +{re.escape(line)}$", out, flags=re.M)
        assert "--install-completion" in out
    modules = {p.stem for p in (ROOT / "qdeploy" / "cli").glob("*.py")}
    assert set(VERBS) == {m for m in modules if hasattr(importlib.import_module(f"qdeploy.cli.{m}"), f"{m}_command")}


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb(verb: str, capsys: Capture) -> None:
    assert run([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "Everywhere" in out
    assert all(option in out for option in ("--json", "--quiet", "--traceback"))
    function = getattr(importlib.import_module(f"qdeploy.cli.{verb}"), f"{verb}_command")
    assert " ".join(function.__doc__.split()) in " ".join(out.split())
    ends = [line.rstrip() for line in out.split("╭")[0].splitlines()]
    for line, following in pairwise(ends):  # a line ends where the next word has no place
        first = next(iter(following.split()), "")
        assert not (line and first) or len(line) + 1 + len(first) > 79, out
    assert "NAME=]ARTIFACT;" not in out.replace("[NAME=]", "")
    assert function.__doc__.startswith(VERBS[verb].removesuffix("."))


def completions(words: str, cwd: Path) -> list[str]:
    """Ask as bash does when Tab is pressed after these words."""
    asked = {"_QDEPLOY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(QDEPLOY, cwd=cwd, capture_output=True, text=True, env={**os.environ, **asked}, check=True)
    return done.stdout.split()


def test_verbs_options_and_choices_are_completed(tmp_path: Path) -> None:
    assert completions("qdeploy ", tmp_path) == list(VERBS)
    assert completions("qdeploy e", tmp_path) == ["export", "eval", "explain", "encrypt"]
    assert completions("qdeploy predict --t", tmp_path) == ["--threads", "--token", "--top", "--traceback"]
    assert completions("qdeploy eval --split t", tmp_path) == ["test", "train"]


def test_completion_is_installed_and_shown(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path)}
    command = " ".join(map(shlex.quote, QDEPLOY))
    for option in "--install-completion", "--show-completion":
        script = f"{command} {option}; exit $?"  # so that bash stays: its name is what is looked for
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert "bash" in done.stdout
    assert "_qdeploy_completion" in done.stdout
    (written,) = tmp_path.glob(".bash_completions/*")
    assert "_QDEPLOY_COMPLETE=complete_bash" in written.read_text()


def on_a_terminal(arguments: list[str], **variables: str) -> str:
    """Run a command whose output is a terminal of 80 columns, and return what it wrote there."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **variables}
    process = subprocess.Popen([*QDEPLOY, *arguments], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the terminal's other end is closed
        while block := os.read(ours, 65536):
            shown += block
    os.close(ours)
    assert process.wait(timeout=60) == 0
    return shown.decode()


def test_no_color() -> None:
    colour = re.compile(r"\x1b\[(?:\d+;)*3\d")
    assert colour.search(on_a_terminal(["predict", "--help"]))
    assert not colour.search(on_a_terminal(["predict", "--help"], NO_COLOR="1"))
    assert not colour.search(on_a_terminal(["eval"], NO_COLOR="1"))


def test_a_library_that_finds_no_memory_is_told_in_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "qdeploy", "train", "--out", str(tmp_path / "run")]
    done = subprocess.run(["sh", "-c", 'ulimit -v 700000; exec "$@"', "sh", *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("qdeploy: a library cannot be loaded: ")
    assert not (tmp_path / "run").exists()
