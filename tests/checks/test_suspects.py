"""Confident learning against values worked out by hand, and wrong labels that a model file finds."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qdeploy.checks.suspects import Judged, confident_joint, find_suspects, judge_with_file
from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED
from qdeploy.core.errors import DataError
from qdeploy.data.embedded import NAME as EMBEDDED

FP32 = SHIPPED / "model.fp32.onnx"


def judged(probabilities: list[list[float]], labels: list[int]) -> Judged:
    return Judged(
        data="hand",
        by="hand",
        classes=tuple("abc"[: len(probabilities[0])]),
        names=[f"x{i}" for i in range(len(labels))],
        hashes=[""] * len(labels),
        labels=np.asarray(labels, np.int64),
        probabilities=np.asarray(probabilities, np.float32),
    )


def test_the_published_definition_by_hand() -> None:
    """Thresholds are means of self-confidence: (0.9 + 0.6 + 0.2) / 3, (0.8 + 0.4) / 2 and 0.6."""
    of = judged(
        [[0.9, 0.1, 0.0], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.4, 0.4, 0.2], [0.3, 0.1, 0.6]],
        [0, 0, 0, 1, 1, 2],
    )
    joint = confident_joint(of.probabilities, of.labels)
    assert joint.thresholds.tolist() == pytest.approx([1.7 / 3, 0.6, 0.6])
    assert joint.likely.tolist() == [0, 0, 1, 1, -1, 2]
    assert joint.counts.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 1]]
    expected = [[1 / 3, 1 / 6, 0], [0, 1 / 3, 0], [0, 0, 1 / 6]]  # rows scaled to 3, 2 and 1 of 6 images
    assert joint.joint.tolist() == [pytest.approx(row) for row in expected]
    found = find_suspects(of)
    assert found.estimated_errors == pytest.approx(1.0)
    assert found.top1 == pytest.approx(100 * 4 / 6)  # of equal probabilities the first counts: x4 is an a
    (suspect,) = found.suspects
    assert (suspect.image, suspect.label, suspect.likely) == ("x2", "a", "b")
    assert (suspect.self_confidence, suspect.likely_probability) == pytest.approx((0.2, 0.7))
    assert suspect.margin == pytest.approx(-0.5)


def test_of_two_thresholds_that_are_reached_the_more_probable_class_counts_and_the_lowest_margin_comes_first() -> None:
    """Thresholds 0.4 and 0.525: the third reaches both."""
    of = judged([[0.5, 0.5], [0.3, 0.7], [0.45, 0.55], [0.5, 0.5]], [0, 0, 1, 1])
    joint = confident_joint(of.probabilities, of.labels)
    assert joint.thresholds.tolist() == pytest.approx([0.4, 0.525])
    assert joint.likely.tolist() == [0, 1, 1, 0]
    found = find_suspects(of).suspects
    assert [s.image for s in found] == ["x1", "x3"]
    assert [s.margin for s in found] == pytest.approx([-0.4, 0.0])


def test_a_class_without_images_suspects_nobody() -> None:
    of = judged([[0.6, 0.2, 0.2], [0.1, 0.5, 0.4], [0.1, 0.1, 0.8]], [0, 1, 1])
    found = find_suspects(of)
    assert found.thresholds[2] is None
    assert found.suspects == ()
    assert found.estimated_errors == 0
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_model_that_knows_nothing_is_told() -> None:
    of = judged([[0.1, 0.9], [0.9, 0.1], [0.2, 0.8], [0.8, 0.2]], [0, 1, 0, 1])
    (note,) = find_suspects(of).notes
    assert note.startswith("more than a fifth")
    with pytest.raises(DataError, match="hand has no usable image"):
        find_suspects(replace(of, labels=of.labels[:0], probabilities=of.probabilities[:0]))


def test_a_file_finds_planted_errors(boots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shutil.copytree(boots, tmp_path / "boots")
    planted = {"Bag/wrong.png": "Trouser/05.png", "Ankle boot/wrong.png": "Bag/05.png"}
    for place, image in planted.items():
        shutil.move(root / image, root / place)
    rows = tmp_path / "suspects.csv"
    words = ["data", str(root), "--suspects", "--model", str(FP32), "--csv", str(rows)]
    assert run([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    found = document["suspects"]
    assert document["classes"] == ["Ankle boot", "Bag", "Trouser"]
    assert {str(Path(s["image"]).relative_to(root)) for s in found["suspects"]} == set(planted)
    assert {(s["label"], s["likely"]) for s in found["suspects"]} == {("Bag", "Trouser"), ("Ankle boot", "Bag")}
    assert found["n"] == 60
    assert found["notes"][-1].startswith("the model was trained on fashion-mnist: of images that are in it, too")
    assert found["estimated_errors"] == pytest.approx(2, abs=0.5)
    with rows.open(newline="") as stream:
        assert [r["image"] for r in csv.DictReader(stream)] == [s["image"] for s in found["suspects"]]
    assert run(words) == 2
    assert "exists" in capsys.readouterr().err
    assert run([*words, "--force"]) == 0
    text = capsys.readouterr().out
    assert "2 labels likely wrong, estimated to be wrong 2 " in text
    assert "wrong.png" in text


def test_of_the_data_that_a_model_was_trained_on_only_the_test_images_are_judged(fp32_file: Path) -> None:
    found = judge_with_file(fp32_file, EMBEDDED)
    assert len(found.labels) == 1000
    assert found.names[0] == f"{EMBEDDED}/test/0"
    assert any("its test images took no part in training" in note for note in found.notes)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--folds", "3"], "belong to --suspects"),
        (["--csv", "x.csv"], "belong to --suspects"),
        (["--suspects", "--model", str(FP32), "--folds", "3"], "--folds and --epochs are of models to train"),
        (["--suspects", "--folds", "1"], "--folds must be between 2 and 20, found 1"),
        (["--suspects", "--model", "nanno"], "nanno"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1
