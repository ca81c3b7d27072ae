"""What ``qdeploy predict`` and Python say of answers that are not like those to the validation images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.runtime.classifier import Classifier
from tests.drifting import clothes, folder_of, inverted
from tests.resealed import reseal

Capture = pytest.CaptureFixture[str]
INT8 = SHIPPED / "model.int8.onnx"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place, images = tmp_path_factory.mktemp("drift"), clothes(240)
    return {
        "like": folder_of(images, place / "like"),
        "inverted": folder_of(inverted(images), place / "inverted"),
        "few": folder_of(images[:99], place / "few"),
    }


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in the package as an earlier version wrote it."""
    target = tmp_path_factory.mktemp("old") / "old.onnx"
    return reseal(INT8, target, lambda card: card["confidence"].pop("reference"))


@pytest.fixture
def classifier() -> Iterator[Classifier]:
    with qdeploy.load() as found:
        yield found


def told(capsys: Capture) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "drift" in line]


@pytest.mark.parametrize("more", [["--json"], ["--no-abstain"], []])
def test_a_folder_of_like_images_is_like_them(folders: dict[str, Path], more: list[str], capsys: Capture) -> None:
    assert run(["predict", str(folders["like"]), "--model", str(INT8), *more]) == 0
    (line,) = told(capsys)
    assert "no drift: the 240 answers are like those to the validation images (PSI 0.0" in line


@pytest.mark.parametrize("more", [["--json"], ["--no-abstain"], []])
def test_a_folder_of_negatives_is_not(folders: dict[str, Path], more: list[str], capsys: Capture) -> None:
    assert run(["predict", str(folders["inverted"]), "--model", str(INT8), *more]) == 0
    (line,) = told(capsys)
    assert "drift: the 240 answers differ from those to the validation images: lower scores (PSI " in line
    assert ", less sure (PSI " in line
    assert ", other classes, first of all " in line


def test_a_csv_file_has_the_same_line_and_silence_none(
    folders: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    words = ["predict", str(folders["inverted"]), "--model", str(INT8)]
    assert run([*words, "--csv", str(tmp_path / "a.csv")]) == 0
    (line,) = told(capsys)
    assert "the 240 answers differ" in line
    assert run([*words, "--csv", str(tmp_path / "b.csv"), "-q"]) == 0
    assert not told(capsys)


def test_of_few_images_and_of_a_card_of_an_earlier_version_nothing_is_said(
    folders: dict[str, Path], old: Path, capsys: Capture
) -> None:
    assert run(["predict", str(folders["few"]), "--model", str(INT8)]) == 0
    assert run(["predict", str(folders["inverted"]), "--model", str(old)]) == 0
    assert not told(capsys)
    assert qdeploy.load(old).watch_drift() is None


def test_a_card_without_confidence_has_no_watch(tmp_path: Path) -> None:
    bare = reseal(INT8, tmp_path / "bare.onnx", lambda card: card.pop("confidence"))
    assert qdeploy.load(bare).watch_drift() is None


def test_a_watch_takes_the_answers_of_a_classifier(classifier: Classifier) -> None:
    watch = classifier.watch_drift(window=120)
    assert watch is not None
    images = [np.stack([image] * 3, axis=-1) for image in clothes(240)]
    for answer in classifier(list(images)):
        watch.see(answer)
    assert (watch.windows, watch.alarms) == (2, 0)
    for answer in classifier([255 - image for image in images[:120]]):
        watch.see(answer)
    assert (watch.windows, watch.alarms) == (3, 1)
    assert watch.latest is not None
    assert watch.latest.differs


def test_the_score_of_a_model_that_calls_nothing_unknown_is_the_same(classifier: Classifier) -> None:
    images = [np.stack([image] * 3, axis=-1) for image in clothes(20)]
    always = qdeploy.load(abstain=False)
    for a, b in zip(classifier(list(images)), always(list(images)), strict=True):
        assert b.score is None
        assert a.energy == a.score == b.energy


@pytest.mark.parametrize("name", ["model.fp32.onnx", "model.int8.onnx"])
def test_the_models_in_the_package_know_their_answers_to_2000_images(name: str) -> None:
    made = read_artifact(SHIPPED / name).card.reference
    assert made is not None
    assert made.n == 2000
    assert all(190 <= count <= 210 for count in (*made.score.counts, *made.classes))
