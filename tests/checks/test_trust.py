"""What `qdeploy eval` says of a model's confidence, and of images of other things."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qdeploy.checks.confidence import told_apart
from qdeploy.checks.evaluate import EvalConfig, Evaluation, Scored, evaluate
from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED
from qdeploy.core.errors import DataError, InputError
from qdeploy.core.reliability import auroc
from tests.confident import confident

THRESHOLD = 4.5
Measured = tuple[Evaluation, list[dict[str, str]]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return confident(SHIPPED / "model.int8.onnx", folder / "model.onnx", temperature=1.2, threshold=THRESHOLD)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Flat images of every shade, and a file that is none."""
    folder = tmp_path_factory.mktemp("others")
    for shade in range(0, 256, 8):
        Image.new("L", (28, 28), shade).save(folder / f"{shade}.png")
    (folder / "none.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def found(model: Path, others: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    file = tmp_path_factory.mktemp("rows") / "rows.csv"
    words = ["eval", str(model), "fashion-mnist-mini", "--csv", str(file)]
    assert run(words) == 0
    rows = list(csv.DictReader(file.read_text().splitlines()))
    return evaluate(model, EvalConfig(unknown=others)), rows


def test_coverage_and_accuracy_are_those_of_the_rows(found: Measured) -> None:
    trust, rows = found[0].trust, found[1]
    answered = [r for r in rows if r["unknown"] == "False"]
    assert 0 < len(answered) < len(rows)
    assert all((float(r["score"]) < THRESHOLD) == (r["unknown"] == "True") for r in rows)
    assert trust.coverage == len(answered) / len(rows)
    assert trust.answered_top1 == pytest.approx(100 * np.mean([r["label"] == r["predicted"] for r in answered]))
    assert trust.answered_top1 is not None
    assert trust.answered_top1 > found[0].top1
    assert trust.temperature == 1.2


def test_the_curve_ends_with_all_wrong_answers(found: Measured) -> None:
    trust = found[0].trust
    assert trust.curve[-1] == pytest.approx((1.0, 1 - found[0].top1 / 100))
    assert list(trust.curve) == sorted(trust.curve)
    assert 0 < trust.aurc < 1 - found[0].top1 / 100
    assert trust.reliability.ece_ci95[0] < trust.reliability.ece < trust.reliability.ece_ci95[1]


def test_images_of_other_things_are_told_apart(found: Measured) -> None:
    others = found[0].trust.others
    assert others is not None
    assert (others.n, others.left_out) == (32, 1)
    assert others.score.auroc_ci95[0] <= others.score.auroc <= others.score.auroc_ci95[1]
    assert others.score.auroc > 0.9
    assert others.unknown is not None
    assert others.unknown > 0.5


def test_without_abstaining_all_is_answered(model: Path, others: Path) -> None:
    trust = evaluate(model, EvalConfig(unknown=others, abstain=False)).trust
    assert (trust.coverage, trust.answered_top1) == (None, None)
    assert trust.others is not None
    assert trust.others.unknown is None


def test_the_command_says_it(model: Path, others: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", str(model), "fashion-mnist-mini", "--unknown", str(others)]
    assert run(words) == 0
    out = capsys.readouterr().out
    for text in ("ECE 0.", "answered ", "the others are unknown", "AUROC 0.", "1 not readable", "by the probability"):
        assert text in out
    assert run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trust"]["others"]["n"] == 32


def test_a_folder_without_images_is_refused(model: Path, tmp_path: Path) -> None:
    answered: list[Scored] = []
    with pytest.raises(InputError, match="there is no folder"):
        evaluate(model, EvalConfig(unknown=tmp_path / "nowhere"), each=answered.append)
    assert not answered  # it is told before the long part
    (tmp_path / "none.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="no image that can be read"):
        evaluate(model, EvalConfig(unknown=tmp_path))


def test_the_interval_of_an_auroc_narrows_with_the_images() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for n in (50, 2000):
        inside, outside = rng.normal(1, 1, n), rng.normal(0, 1, n)
        told = told_apart(inside, outside)
        assert told.auroc == auroc(inside, outside)
        assert told.auroc_ci95[0] < 0.76 < told.auroc_ci95[1]  # of two normal distributions one sigma apart
        widths.append(told.auroc_ci95[1] - told.auroc_ci95[0])
    assert widths[1] < widths[0] / 4
