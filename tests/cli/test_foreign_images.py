"""Images of other people through the command and the server: a right answer, or one line and exit code 2, or a 4xx."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import qdeploy
from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED
from qdeploy.core.errors import ImageError
from qdeploy.core.image_formats import FORMATS
from qdeploy.core.run_folder import read_record
from tests.conftest import MakeImages
from tests.core.bad_images import encoded
from tests.foreign_images import foreign_images
from tests.serve.running import in_thread

INT8 = SHIPPED / "model.int8.onnx"


def test_every_image_ends_in_an_answer_or_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cases = list(foreign_images())
    paths = []
    for i, case in enumerate(cases):
        paths.append(tmp_path / f"{i} {case.name}")
        paths[-1].write_bytes(case.data)
    words = ["predict", *map(str, paths), "--model", str(INT8), "--top", "10"]
    assert run([*words, "--json"]) == 2
    out, err = capfd.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    lines = [line for line in err.splitlines() if line.startswith("qdeploy: ")]
    classifier = qdeploy.load(INT8)
    for case, path, answer in zip(cases, paths, answers, strict=True):
        assert answer["image"] == str(path)
        assert ("error" in answer) == (case.pixels is None), case.name
        assert sum(line.startswith(f"qdeploy: {path}: ") for line in lines) == ("error" in answer)
        if case.pixels is not None:
            expected = classifier(case.pixels)
            found = {p["index"]: p["probability"] for p in answer["predictions"]}
            assert np.allclose([found[i] for i in range(10)], expected.probabilities, atol=0.02), case.name
            assert answer.get("frames", 1) == case.frames
    assert len(lines) == sum(case.pixels is None for case in cases)


def test_only_the_formats_that_are_asked_for_are_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = {}
    for kind in FORMATS:
        files[kind] = encoded(Image.new("RGB", (9, 9), (200, 40, 30)), kind)
        (tmp_path / f"{kind}.png").write_bytes(files[kind])
    assert run(["predict", str(tmp_path), "--model", str(INT8), "--formats", "png, JPG", "--json"]) == 2
    answers = {Path(a["image"]).stem: a for a in map(json.loads, capfd.readouterr().out.splitlines())}
    assert {k for k, a in answers.items() if "error" not in a} == {"PNG", "JPEG"}
    assert answers["GIF"]["error"] == "is a GIF file, and only PNG, JPEG are taken here"
    assert answers["GIF"]["reason"] == "unsupported-format"
    classifier = qdeploy.load(INT8, formats=["gif"])
    assert classifier(files["GIF"]).label
    for refused in (files["PNG"], tmp_path / "PNG.png"):
        with pytest.raises(ImageError, match="is a PNG file, and only GIF are taken"):
            classifier(refused)
    with in_thread(formats=("tiff", "pgm")) as server:
        statuses = {k: server.send("POST", "/predict", data).status for k, data in files.items()}
    assert statuses == {k: 200 if k in ("TIFF", "PPM") else 415 for k in FORMATS}


def test_data_takes_only_the_formats_that_are_asked_for(
    image_folder: MakeImages, capfd: pytest.CaptureFixture[str]
) -> None:
    root = image_folder()
    for i in range(3):
        (root / "cat" / f"{i}.gif").write_bytes(encoded(Image.new("L", (9, 9), i), "GIF"))
    for words, count in ((["--formats", "png"], 3), ([], 0), (["--formats", "png"], 3)):
        assert run(["data", str(root), *words, "--json"]) == 0
        problems = json.loads(capfd.readouterr().out)["problems"]
        assert sum("is a GIF file, and only PNG are taken" in p for p in problems) == count


def test_a_run_remembers_its_formats(
    image_folder: MakeImages, tmp_path: Path, capfd: pytest.CaptureFixture[str], own_cache: Path
) -> None:
    root = image_folder(count=12)
    for i in range(3):
        (root / "cat" / f"{i}.gif").write_bytes(encoded(Image.new("L", (9, 9), i), "GIF"))
    quick = ["--model", "nano-ar", "--epochs", "1", "--batch-size", "8", "--device", "cpu"]
    made = tmp_path / "run"
    assert run(["train", str(root), *quick, "--formats", "png", "--out", str(made)]) == 0
    record = read_record(made)
    assert (record.config["formats"], sum(record.dataset.images.values())) == ("png", 24)
    assert run(["export", str(made), "--out", str(tmp_path / "export")]) == 0  # the hash of the data is the run's
    file = tmp_path / "export" / "model.fp32.onnx"
    capfd.readouterr()
    for more, count, said in (([], 24, True), (["--formats", "png,gif"], 27, False)):
        assert run(["eval", str(file), str(root), "--split", "all", *more, "--json"]) == 0
        found = json.loads(capfd.readouterr().out)
        assert (found["n"], len(found["problems"])) == (count, 27 - count)
        assert any("only PNG files are taken" in line for line in found["notes"]) == said
    assert run(["verify", str(file), "--data", str(root), "--json"]) == 0


@pytest.mark.parametrize("words", [["predict", "x.png"], ["data"], ["serve"], ["train"], ["sweep"], ["eval"]])
@pytest.mark.parametrize("formats", ["heic", "png,", ",", "png jpeg"])
def test_an_unknown_format_is_refused(words: list[str], formats: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*words, "--formats", formats]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("qdeploy: --formats must be some of jpeg, png, webp, bmp, gif, tiff, ppm, avif, found ")


def test_the_server_refuses_what_is_no_image() -> None:
    with in_thread() as server:
        for case in foreign_images():
            reply = server.send("POST", "/predict", case.data)
            if case.pixels is None:
                assert 400 <= reply.status < 500, case.name
                assert "\n" not in reply.json["error"], case.name
            else:
                assert (reply.status, len(reply.json["predictions"])) == (200, 5), case.name
