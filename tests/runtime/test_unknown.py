"""Images that a model does not answer: in Python, on the command line, in CSV and JSON."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED
from qdeploy.core.errors import ImageError
from qdeploy.core.reliability import scores_of
from qdeploy.runtime.classifier import Classifier, Prediction, predictions
from tests.confident import confident
from tests.resealed import reseal

SAME = SHIPPED / "model.int8.onnx"
EXAMPLES = Path(__file__).parents[2] / "examples"
IMAGES = sorted(map(str, EXAMPLES.glob("*.png")))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in the package with a temperature, and a threshold that half of the examples reach."""
    folder = tmp_path_factory.mktemp("unknown")
    hot = qdeploy.load(confident(SAME, folder / "hot.onnx", temperature=1.5, threshold=-1e6))
    scores = [hot(i).score for i in IMAGES]
    assert None not in scores
    return confident(SAME, folder / "model.onnx", temperature=1.5, threshold=float(np.median(np.asarray(scores))))


def answers(model: Path, *, abstain: bool = True) -> list[Prediction]:
    classifier: Classifier = qdeploy.load(model, abstain=abstain)
    return classifier(list(IMAGES))


def test_below_the_threshold_the_label_is_unknown_and_the_rest_is_as_before(model: Path) -> None:
    found, before = answers(model), answers(SAME)
    assert sum(p.unknown for p in found) == len(IMAGES) // 2
    least = qdeploy.load(model).card.confidence
    assert least is not None
    assert least.threshold is not None
    assert all(p.score is not None and p.unknown == (p.score < least.threshold) for p in found)
    for new, old in zip(found, before, strict=True):
        assert new.would_be == old.would_be
        assert new.index == old.index
        assert new.label == ("unknown" if new.unknown else old.label)


def test_the_score_is_the_energy_of_the_logits(model: Path) -> None:
    classifier = qdeploy.load(model)
    pixels = np.stack([classifier.card.preprocessing(Path(i)) for i in IMAGES])
    expected = scores_of(classifier.session.infer(pixels)[0], 1.5)
    assert [p.score for p in classifier.classify(pixels)] == pytest.approx(expected.tolist(), abs=1e-4)


def test_without_abstaining_or_a_threshold_there_is_no_score(model: Path, tmp_path: Path) -> None:
    old = reseal(SAME, tmp_path / "old.onnx", lambda card: card.pop("confidence"))
    for found in (answers(model, abstain=False), answers(old)):
        assert all(p.score is None and not p.unknown and p.label == p.would_be for p in found)


def test_an_answer_that_is_no_number_is_no_unknown_either(model: Path) -> None:
    classifier = qdeploy.load(model)
    assert classifier.cut is not None
    (answer,) = predictions(("a", "b"), [[float("inf"), 0.0]], [[1.0, 0.0]], classifier.cut)
    assert isinstance(answer, ImageError)
    assert answer.reason == "not-finite"


def test_the_command_says_what_it_would_have_been(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", *IMAGES, "--model", str(model), "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, answer in zip(lines, answers(model), strict=True):
        if answer.unknown:
            assert f"unknown (score {answer.score:.2f}; would be {answer.would_be} " in line
        else:
            assert "unknown" not in line
    assert run(["predict", *IMAGES, "--model", str(model), "--no-abstain"]) == 0
    assert "unknown" not in capsys.readouterr().out


def test_json_has_label_score_and_the_labels_in_their_order(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", *IMAGES, "--model", str(model), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row, answer in zip(rows, answers(model), strict=True):
        assert (row["label"], row["unknown"]) == (answer.label, answer.unknown)
        assert row["score"] == pytest.approx(answer.score, abs=1e-4)
        assert row["predictions"][0]["label"] == answer.would_be
    assert run(["predict", *IMAGES, "--model", str(model), "--json", "--no-abstain"]) == 0
    assert set(json.loads(capsys.readouterr().out.splitlines()[0])) == {"image", "predictions", "latency_ms"}


def test_csv_has_a_column_for_each(model: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"none")
    assert (
        run(["predict", *IMAGES, str(bad), "--model", str(model), "--csv", str(tmp_path / "a.csv"), "--top", "2"]) == 2
    )
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    for row, answer in zip(rows[:-1], answers(model), strict=True):
        assert (row["label"], row["would_be"]) == (answer.label, answer.would_be)
        assert float(row["score"]) == pytest.approx(answer.score, abs=1e-3)
        assert row["label_2"] == answer.top(2)[1].label
    assert (rows[-1]["label"], rows[-1]["would_be"], rows[-1]["score"]) == ("", "", "")
    assert run(["predict", *IMAGES, "--model", str(model), "--no-abstain", "--csv", str(tmp_path / "b.csv")]) == 0
    assert "would_be" not in (tmp_path / "b.csv").read_text()


@pytest.mark.parametrize(
    "option",
    ["--no-abstain", "--ray", "--formats png", "--engine ort", "--threads 1", "--batch-size 2", "--ray-address auto"],
)
def test_a_server_decides_for_itself(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", IMAGES[0], "--url", "http://127.0.0.1:9", *option.split()]) == 2
    assert f"with --url the server decides, not {option.split()[0]};" in capsys.readouterr().err
