"""Names of files, folders, labels and models are data: they move no cursor, and in JSON and CSV they are exact."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED
from tests.conftest import MakeImages
from tests.core.bad_images import PNG
from tests.resealed import reseal

INT8 = SHIPPED / "model.int8.onnx"
NAMES = (
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "a\nqdeploy: all is well",
    "back\rward\b\b",
    "\x9b1A\x85",
    "\u202egnp.scr\u2066",
    "\u2028\u2029",
    '<script>alert("1")</script>',
    "=cmd|' /C calc'!A0",
    "[bold red]x[/]",
)


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    """Give what was printed, after a look at every character."""
    out, err = capsys.readouterr()
    text = out + err
    assert all(c.isprintable() or c == "\n" for c in text), ascii(text)
    return text


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def change(card: dict[str, Any]) -> None:
        card["labels"] = list(NAMES)
        card["name"] = card["model"]["name"] = card["origin"]["dataset"]["name"] = NAMES[0] + NAMES[2]

    return reseal(INT8, tmp_path_factory.mktemp("foreign") / "model.int8.onnx", change)


def test_a_models_labels_move_no_cursor_and_are_exact_in_files(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [tmp_path / "images" / f"{name.replace('/', '_')}.png" for name in NAMES]
    images[0].parent.mkdir()
    for path in images:
        path.write_bytes(PNG)
    bad = tmp_path / "images" / "bad\x1b[1m\n.png"
    bad.write_bytes(b"x")
    words = [*map(str, images), str(bad), "--model", str(foreign), "--top", "10"]
    assert run(["predict", *words]) == 2
    lines = shown(capsys).splitlines()
    assert sum("ms)" in line for line in lines) == len(images)
    assert sum(line.startswith("qdeploy: ") for line in lines) == 1
    assert run(["predict", *words, "--json"]) == 2
    out = capsys.readouterr().out
    assert out.isascii()
    answers = [json.loads(line) for line in out.splitlines()]
    assert [a["image"] for a in answers] == [*map(str, images), str(bad)]
    assert {p["label"] for p in answers[0]["predictions"]} == set(NAMES)
    file = tmp_path / "answers.csv"
    assert run(["predict", *words, "--csv", str(file)]) == 2
    shown(capsys)
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [r["image"] for r in rows] == [*map(str, images), str(bad)]
    assert [(r["label"], r["would_be"]) for r in rows[:-1]] == [
        (a["label"], a["predictions"][0]["label"]) for a in answers[:-1]
    ]
    assert run(["predict", *words, "--no-abstain", "--csv", str(file), "--force"]) == 2
    shown(capsys)
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [r["label"] for r in rows[:-1]] == [a["predictions"][0]["label"] for a in answers[:-1]]


@pytest.mark.parametrize("verb", [("inspect",), ("verify",), ("diff", str(INT8)), ("bench", "--quick", "--runs", "10")])
def test_a_foreign_card_moves_no_cursor(
    verb: tuple[str, ...], foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([verb[0], str(foreign), *verb[1:]]) in (0, 1)
    shown(capsys)


@pytest.mark.parametrize("name", [n for n in NAMES if "/" not in n])
def test_a_folder_and_its_files_move_no_cursor(
    name: str, image_folder: MakeImages, capsys: pytest.CaptureFixture[str]
) -> None:
    root = image_folder(name=f"data {name}")
    (root / "cat" / f"{name}.png").write_bytes(b"x")
    (root / "cat" / f"text {name}").write_bytes(b"x")
    assert run(["data", str(root)]) == 0
    assert "2 problems" in shown(capsys)
    image_folder((name, "dog"), name="other")
    assert run(["data", str(root.parent / "other")]) in (0, 2)
    shown(capsys)
    for words in (["data", name], ["eval", name], ["predict", f"{name}.png"], ["train", "--recipe", name], [name]):
        assert run(words) == 2
        *notes, line = shown(capsys).splitlines()
        assert line.startswith("qdeploy: ")
        assert all(note.startswith(("model: ", "model.int8.onnx was made for ")) for note in notes)
