"""Options as hands expect them: short help, models and data as options, words of others, defaults in the help."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest
import typer

import qdeploy
from qdeploy.cli.app import VERBS, _callable
from qdeploy.cli.familiar import HINTS, in_our_words
from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED
from qdeploy.runtime.inputs import Arriving
from qdeploy.runtime.predict import predict_files
from qdeploy.training.recipes import TrainConfig

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
INT8 = str(SHIPPED / "model.int8.onnx")
QDEPLOY = [sys.executable, "-m", "qdeploy"]
Capture = pytest.CaptureFixture[str]
PROGRAM: Any = typer.main.get_command(_callable(VERBS))


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work where there is no run and no export."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("verb", VERBS)
def test_short_help_is_the_help_and_nothing_in_it_is_cut(verb: str, capsys: Capture) -> None:
    assert run([verb, "--help"]) == 0
    long = capsys.readouterr().out
    assert run([verb, "-h"]) == 0
    assert capsys.readouterr().out == long
    words = set(long.split())
    assert not any(word.endswith("…") for word in words)
    for option in PROGRAM.commands[verb].params:
        assert set((option.help or "").split()) <= words, option.name
        assert not option.opts[0].startswith("-") or option.opts[0] in words
        told = option.default is None or option.default is False or option.is_flag or not option.show_default
        assert told or f"[default: {option.default}]" in " ".join(long.replace("│", " ").split()), option.name


def test_the_help_of_train_names_the_defaults_of_its_recipe() -> None:
    texts = {p.name: p.help for p in PROGRAM.commands["train"].params}
    for field in "epochs", "batch_size", "lr", "seed", "amp":
        assert texts[field].endswith(f"Default: the recipe's; small: {getattr(TrainConfig(), field)}.")


def test_the_list_of_verbs_by_short_help(capsys: Capture) -> None:
    assert run(["-h"]) == 0
    shown = capsys.readouterr().out
    assert "doctor" in shown
    assert not [line for line in shown.splitlines() if line.endswith("...") and "Usage" not in line]


@pytest.mark.parametrize("verb", ["inspect", "verify", "lint"])
@pytest.mark.parametrize("option", ["--model", "--weights"])
def test_a_model_is_an_argument_or_an_option(verb: str, option: str, capsys: Capture) -> None:
    assert run([verb, INT8]) == 0
    plain = capsys.readouterr().out
    assert run([verb, option, INT8]) == 0
    assert capsys.readouterr().out == plain


def test_every_verb_that_takes_a_model_or_data_takes_it_as_an_option() -> None:
    takes = {
        verb: {o for p in c.params for o in p.opts if o in ("--model", "--data")}
        for verb, c in PROGRAM.commands.items()
    }
    model = {v for v, found in takes.items() if "--model" in found}
    assert model == set(VERBS) - {"models", "diff", "doctor", "sweep", "review"}
    assert {v for v, found in takes.items() if "--data" in found} == {
        *("train", "sweep", "data", "quantize", "calibrate", "adopt", "eval", "verify", "diff")
    }


def test_what_is_given_twice_or_not_at_all(capsys: Capture) -> None:
    assert run(["inspect", INT8, "--model", INT8]) == 2
    assert "ARTIFACT is given twice, with --model and without" in capsys.readouterr().err
    for verb in "lint", "adopt":
        assert run([verb]) == 2
        assert "Missing argument 'FILE'" in capsys.readouterr().err
    assert run(["eval", "--model", INT8, "nowhere"]) == 2  # the one argument is the data then
    assert "no data folder or data set named 'nowhere'" in capsys.readouterr().err
    assert run(["eval", "--model", INT8, "--data", "nowhere"]) == 2
    assert "no data folder or data set named 'nowhere'" in capsys.readouterr().err


def test_words_of_other_programs_are_taken_as_ours(capsys: Capture) -> None:
    assert in_our_words(["train", "--from", "runs/a"], PROGRAM, "train") == ["train", "--weights", "runs/a"]
    words = ["train", "--imgsz", "32", "--batch=8", "--learning-rate", "0.1", "-o", "x", "--", "--batch"]
    ours = ["train", "--set", "input_size=32", "--batch-size=8", "--lr", "0.1", "--out", "x", "--", "--batch"]
    assert in_our_words(words, PROGRAM, "train") == ours
    assert in_our_words(["quantize", "--output", "logits"], PROGRAM, "quantize") == ["quantize", "--output", "logits"]
    assert run(["train", "--dry-run", "--json", "--imgsz=32", "--batch", "8", "--lr0", "0.125"]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in ('"input_size": 32', '"batch_size": 8', '"lr": 0.125'))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["predict", "--imgsz", "64", "x"], HINTS["--imgsz"]),
        (["sweep", "--weights", "x"], HINTS["--weights"]),
        (["predict", "--source", "x"], HINTS["--source"]),
        (["doctor", "--verbose"], HINTS["--verbose"]),
        (["train", "--schedule", "cosine"], "say --set schedule=VALUE"),
        (["sweep", "--label-smoothing=0.1"], "say --set label_smoothing=VALUE"),
        (["train", "--dry-run", "--model", "qonstraint-5.9"], "or its model --model qonstraint-5.9-gap"),
        (["train", "--dry-run", "--recipe", "micro"], "'micro' is a model, not a recipe; give --model micro"),
        (["sweep", "--models", "nano,mobilevit-thesis"], "'mobilevit-thesis' is a recipe, not a model"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_ours_has_a_hint(words: list[str], text: str, capsys: Capture) -> None:
    assert run(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line


def rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV file."""
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_csv_has_the_labels_that_are_asked_for(empty_folder: Path) -> None:
    file = empty_folder / "a.csv"
    images = [str(EXAMPLES / "bag.png"), "none.png"]
    assert run(["predict", *images, "--csv", str(file), "--top", "12"]) == 2
    good, bad = rows(file)
    best = qdeploy.load()(EXAMPLES / "bag.png").top(12)
    assert [good[f"label_{k}"] for k in range(2, 13)] == [*(r.label for r in best[1:]), "", ""]
    assert good["index_3"] == str(best[2].index)
    assert float(good["probability_2"]) == pytest.approx(best[1].probability, abs=1e-5)
    assert (bad["reason"], bad["label_2"]) == ("not-found", "")
    assert run(["predict", images[0], "--csv", str(empty_folder / "b.csv")]) == 0
    assert "label_2" not in rows(empty_folder / "b.csv")[0]


@pytest.mark.parametrize("words", [["predict", str(EXAMPLES)], ["eval", "--batch-size", "64"]], ids=str)
def test_a_csv_that_exists_is_replaced_only_if_told(words: list[str], empty_folder: Path, capsys: Capture) -> None:
    file = empty_folder / "a.csv"
    file.write_text("of yesterday")
    assert run([*words, "--csv", str(file)]) == 2
    assert f"{file} exists; give another name, or --force to replace it" in capsys.readouterr().err
    assert file.read_text() == "of yesterday"
    assert [p.name for p in empty_folder.iterdir()] == ["a.csv"]
    assert run([*words, "--csv", str(file), "--force"]) == 0
    assert len(rows(file)) >= 3


@pytest.mark.parametrize(
    "words",
    [
        ["predict", str(EXAMPLES), "--csv"],
        ["eval", "--csv"],
        ["data", "--suspects", "--folds", "2", "--csv"],
        ["explain", str(EXAMPLES), "--out"],
        ["review", str(EXAMPLES), "--label", "bag", "--out"],
        ["calibrate", str(SHIPPED / "model.int8.onnx"), "--data", "fashion-mnist-mini", "--out"],
    ],
    ids=lambda words: words[0],
)
def test_a_file_in_no_folder_is_told_before_the_work(words: list[str], empty_folder: Path, capsys: Capture) -> None:
    assert run([*words, "there/file"]) == 2
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert "cannot write there/file: there is no folder there; make it, or give another path" in complaint
    assert not list(empty_folder.iterdir())


def ask(to: IO[bytes], back: IO[bytes], name: str) -> str:
    """Write a name to a process that goes on, and read its answer."""
    to.write(name.encode() + b"\n")
    to.flush()
    return back.readline().decode()


def test_names_on_standard_input_are_answered_as_they_come(empty_folder: Path) -> None:
    with subprocess.Popen(
        [*QDEPLOY, "-q", "predict", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        for label in "bag", "ankle-boot", "bag":  # each is answered before the next is asked
            name = str(EXAMPLES / f"{label}.png")
            assert ask(process.stdin, process.stdout, name).startswith(f"{name}: ")
        process.stdin.write(b"none.png\r\n\n-")  # the end of a list needs no end of a line; `-` is a file there
        process.stdin.close()
        errors = process.stderr.read().decode()
        assert process.wait(60) == 2
    assert errors.splitlines() == ["qdeploy: none.png: no such file", "qdeploy: ./-: no such file"]


def test_names_that_arrive_come_in_batches_of_what_is_there() -> None:
    read, write = os.pipe()
    name = str(EXAMPLES / "bag.png")
    with os.fdopen(read, "rb") as stream, os.fdopen(write, "wb", buffering=0) as names:
        names.write(f"{name}\n".encode() * 5)
        answers = predict_files(qdeploy.load(), Arriving(stream), 3, 1)
        found = [next(answers) for _ in range(5)]
        names.write(b"none.png\n")
        found.append(next(answers))
        names.close()
        assert list(answers) == []
    assert [a.image for a in found] == [*[name] * 5, "none.png"]
    assert [a.prediction is None for a in found] == [*[False] * 5, True]


@pytest.mark.parametrize("name", ["bag.png", "text"])
def test_an_image_on_standard_input_is_one(name: str) -> None:
    data = (EXAMPLES / "bag.png").read_bytes() if name == "bag.png" else b"\x00\x01 no text"
    done = subprocess.run([*QDEPLOY, "-q", "predict", "-"], input=data, capture_output=True, check=False)
    assert done.returncode == (0 if name == "bag.png" else 2)
    assert (done.stdout + done.stderr).decode().removeprefix("qdeploy: ").startswith("-: ")
