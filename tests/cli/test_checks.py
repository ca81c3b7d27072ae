"""eval, inspect, verify, diff and doctor as a user types them, with the model that ships in the package."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from qdeploy.checks import doctor
from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.native.source import model_source

FP32, INT8 = str(SHIPPED / "model.fp32.onnx"), str(SHIPPED / "model.int8.onnx")
BAG = str(Path(__file__).parents[2] / "examples" / "bag.png")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder without runs and exports."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def document(capsys: Capture, code: int, *arguments: str) -> dict[str, Any]:
    """Run a command with --json, check that it prints one document and nothing else, and give it."""
    assert run([*arguments, "--json"]) == code
    (line,) = capsys.readouterr().out.splitlines()
    value = json.loads(line)
    assert isinstance(value, dict)
    return value


def test_eval(boots: Path, capsys: Capture) -> None:
    assert run(["eval"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"top-1 9\d\.\d\d % \(95 % interval 9\d\.\d\d to 9\d\.\d\d\)", out)
    assert "most confused with" in out
    assert "model: " in err
    options = ["--split", "all", "--csv", "answers.csv", "--batch-size", "9"]
    found = document(capsys, 0, "eval", INT8, str(boots), *options)
    assert set(found) >= {"top1", "top5", "n", "confusion", "ci95", "classes", "images_per_s", "notes", "problems"}
    with open("answers.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == found["n"] == sum(map(sum, found["confusion"]))
    assert sum(r["label"] == r["predicted"] for r in rows) == round(found["top1"] * 0.6)


def test_eval_counts_what_it_leaves_out(boots: Path, tmp_path: Path, capsys: Capture) -> None:
    shutil.copytree(boots, tmp_path / "boots")
    for i in range(12):
        (tmp_path / "boots" / "Bag" / f"{i:02}.ogg").write_bytes(b"OggS")
        (tmp_path / "boots" / "Bag" / f"torn {i:02}.png").write_bytes(b"x")
    assert run(["eval", INT8, "boots", "--split", "all"]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(notes) == 12
    assert notes[-2:] == [
        "left out: 3 more; `qdeploy data boots --all` names them",
        "12 files left out (no image): .ogg 12",
    ]


def test_a_single_argument_that_is_no_model_is_data(empty_folder: Path, capsys: Capture) -> None:
    (empty_folder / "photos" / "Hat").mkdir(parents=True)
    assert run(["eval", "photos"]) == 2
    assert "photos has the class 'Hat' that the model does not know" in capsys.readouterr().err
    assert run(["eval", "photos", "--csv", "x.csv"]) == 2
    assert [p.name for p in empty_folder.iterdir()] == ["photos"]


def test_inspect(capsys: Capture) -> None:
    for path in (INT8, str(SHIPPED)):
        assert run(["inspect", path]) == 0
        out, _ = capsys.readouterr()
        for text in (
            "checksum verified",
            "centre square",
            "on 256 training images, seed",
            "% top-1 (",
            "made from",
            "bytes of flash for weights and tables",
        ):
            assert text in out
    found = document(capsys, 0, "inspect", INT8)
    assert found["precision"] == "int8"
    source = model_source(read_artifact(SHIPPED / "model.int8.onnx"))
    sizes = {"flash_bytes": source.constant_bytes, "ram_bytes": source.arena_bytes, "stack_bytes": 4096}
    sizes |= {"whole_ram_bytes": source.arena_bytes + 16976}
    code_bytes = found["native"].pop("whole_flash_bytes") - source.constant_bytes
    assert 10_000 < code_bytes < 20_000
    assert found["native"] == {**sizes, "refused": None}


def test_verify(empty_folder: Path, capsys: Capture) -> None:
    found = document(capsys, 0, "verify")
    assert found["ok"] is True
    assert all(set(c) == {"name", "ok", "detail"} for c in found["checks"])
    copy = empty_folder / "model.int8.onnx"
    data = bytearray(Path(shutil.copy(INT8, copy)).read_bytes())
    data[-1000] ^= 1
    copy.write_bytes(data)
    assert document(capsys, 1, "verify", str(copy))["ok"] is False
    assert run(["verify", str(copy)]) == 1
    assert "FAILED  model.int8.onnx: checksum" in capsys.readouterr().out


def test_diff(boots: Path, capsys: Capture) -> None:
    images = ["--data", str(boots), "--split", "all"]
    assert run(["diff", FP32, INT8, *images]) == 0
    out, _ = capsys.readouterr()
    for text in ("QuantizeLinear", "the same: model, labels", "SQNR", "B was made from A: its int8 form", "- top-1 "):
        assert text in out
    found = document(capsys, 0, "diff", str(SHIPPED), FP32, *images)
    assert found["meaning"][0] == "A was made from B: its int8 form"
    assert found["numbers"]["parity"]["n"] == 60


def test_doctor(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    found = document(capsys, 0, "doctor")
    assert all(set(c) == {"name", "status", "detail", "fix"} for c in found["checks"])
    assert run(["doctor"]) == 0
    assert "      ok  engine ort: " in capsys.readouterr().out
    monkeypatch.setattr(doctor, "SHIPPED", Path("nowhere"))
    assert document(capsys, 1, "doctor")["ok"] is False


def test_explain(empty_folder: Path, capsys: Capture) -> None:
    assert run(["explain", BAG, BAG]) == 0
    out, err = capsys.readouterr()
    assert "model: " in err
    assert re.search(r"int8 +Bag +99\.9 % +8\.\d+ +row \d, column \d", out)
    page = (empty_folder / "explanation.html").read_text()
    assert page.count("<img") == 2 * 2 * 2  # images, files, and of each the image and the map
    assert "class map of Bag" in page
    found = document(capsys, 0, "explain", BAG, "--model", INT8, "--attention", "--out", "x.html", "--label", "Coat")
    assert found["page"] == "x.html"
    ((shown,),) = (image["files"] for image in found["images"])
    assert (shown["label"], shown["class_map"]["label"], len(shown["attention"])) == ("Bag", "Coat", 1)
    values = [v for row in shown["class_map"]["values"] for v in row]
    total = sum(values) / 64 + shown["class_map"]["bias"] + shown["class_map"]["remainder"]
    assert total == pytest.approx(shown["class_map"]["logit"])
    assert run(["explain", BAG, "--out", "x.html"]) == 2
    assert "x.html exists; give another name, or --force to replace it" in capsys.readouterr().err
    assert run(["explain", BAG, "--out", "x.html", "--force"]) == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["explain", "nowhere.png"], "nowhere.png"),
        (["explain", "{text}"], "text: "),
        (["explain", BAG, "--label", "Bags"], "did you mean 'Bag'"),
        (["explain", BAG, "--model", "{text}"], "is not an ONNX file"),
        (["explain", BAG, "--out", "{text}/below.html"], "is a file, not a folder"),
        (["eval", "nowhere"], "the model file nowhere does not exist"),
        (["eval", INT8, "nowhere"], "no data folder or data set named 'nowhere'"),
        (["eval", INT8, "fashion-mnist-min"], "did you mean 'fashion-mnist-mini'"),
        (["eval", "--split", "tset"], "--split"),
        (["eval", "--batch-size", "0"], "--batch-size"),
        (["eval", "--engine", "tensorflow"], "there is no engine"),
        (["eval", "--csv", "{text}/below.csv"], "is a file, not a folder"),
        (["inspect", "nowhere"], "does not exist"),
        (["verify", "{text}"], "is not an ONNX file"),
        (["verify", "nowhere"], "cannot be read"),
        (["verify", "{empty}"], "holds no model file"),
        (["diff", INT8], "Missing argument"),
        (["diff", INT8, "{text}"], "is not an ONNX file"),
        (["diff", INT8, FP32, "--data", "nowhere"], "no data folder or data set named"),
        (["doctor", "--all"], "--all"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], text: str, empty_folder: Path, capsys: Capture
) -> None:
    (empty_folder / "text").write_text("some text about qdeploy")
    (empty_folder / "empty").mkdir()
    assert run([a.format(text="text", empty="empty") for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = (w for w in err.splitlines() if w.startswith("qdeploy: "))
    assert text in line
    assert sorted(p.name for p in empty_folder.iterdir()) == ["empty", "text"]
