"""Answers that are no numbers: refused by the name of the image, never ranked."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qdeploy.checks.evaluate import EvalConfig, evaluate
from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.errors import ArtifactError, ImageError
from qdeploy.runtime.classifier import Classifier, load, predictions
from qdeploy.runtime.predict import predict_files
from tests.unsound import unsound

BLACK = np.zeros((64, 64, 3), np.uint8)
GREY = np.full((64, 64, 3), 90, np.uint8)
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", params=["model.fp32.onnx", "model.int8.onnx"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unsound(SHIPPED / request.param, tmp_path_factory.mktemp("unsound") / request.param)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "Bag"
    folder.mkdir()
    for name, pixels in (("a-grey.png", GREY), ("black.png", BLACK), ("grey.png", GREY)):
        Image.fromarray(pixels).save(folder / name)
    (folder.parent / "Coat").mkdir()
    Image.fromarray(GREY + 20).save(folder.parent / "Coat" / "other.png")
    return folder


@pytest.mark.parametrize("row", [[float("nan"), 0.5], [0.5, float("nan")], [float("inf"), 0.0], [0.0, -float("inf")]])
def test_only_numbers_are_ranked(row: list[float]) -> None:
    good, bad = predictions(("a", "b"), [[0.0, 1.0]] * 2, [[0.25, 0.75], row])
    assert not isinstance(good, ImageError)
    assert good.label == "b"
    assert isinstance(bad, ImageError)
    assert bad.reason == "not-finite"


def test_the_api_raises_and_names_the_image(model: Path) -> None:
    with load(model) as classifier:
        assert classifier(GREY).probability > 0
        with pytest.raises(ImageError, match="^the model's answer to it is not finite"):
            classifier(BLACK)
        with pytest.raises(ImageError, match="^image 1 of 3, from 0: the model's answer"):
            classifier([GREY, BLACK, GREY])
        with pytest.raises(ImageError, match="image 1 of 2"):
            classifier.classify(np.stack([GREY, BLACK]))


def test_a_batch_goes_on_without_it(model: Path, images: Path) -> None:
    with load(model) as classifier:
        names = [str(p) for p in sorted(images.iterdir())]
        found = list(predict_files(classifier, names, batch_size=3))
    assert [a.reason for a in found] == [None, "not-finite", None]
    assert found[0].prediction
    assert found[2].prediction
    assert found[0].prediction.label == found[2].prediction.label


def test_every_output_of_predict_tells_it(model: Path, images: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["predict", "--model", str(model), str(images)]
    assert run(words) == 2
    captured = capsys.readouterr()
    assert captured.out.count("grey.png: ") == 2
    assert "black.png: the model's answer to it is not finite" in captured.err
    assert "nan" not in captured.out.lower()
    assert run([*words, "--json"]) == 2
    lines = [json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("reason") for line in lines] == [None, "not-finite", None]
    assert run([*words, "--csv", str(tmp_path / "rows.csv")]) == 2
    with (tmp_path / "rows.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["label"] != "", row["reason"]) for row in rows] == [(True, ""), (False, "not-finite"), (True, "")]


def test_eval_names_the_image(model: Path, images: Path) -> None:
    with pytest.raises(ArtifactError, match=r"answer of .*\.onnx to .*black\.png is not finite"):
        evaluate(model, EvalConfig(split="all", data=str(images.parent)))


def test_eval_looks_at_both_files(model: Path, images: Path) -> None:
    with pytest.raises(ArtifactError, match=r"unsound.*black\.png is not finite"):
        evaluate(SHIPPED / "model.int8.onnx", EvalConfig(split="all", data=str(images.parent), against=model))


def test_an_opened_artifact_stays_usable(model: Path) -> None:
    with Classifier(read_artifact(model)) as classifier:
        for _ in range(3):
            with pytest.raises(ImageError):
                classifier(BLACK)
            assert classifier(GREY).label
