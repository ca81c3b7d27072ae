from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from qdeploy.checks.evaluate import EvalConfig, Scored, evaluate
from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.budget import Shown
from qdeploy.core.errors import DataError, InputError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.embedded import FASHION_CLASSES
from qdeploy.data.labelled import labelled_images
from tests.resealed import reseal, with_noise, with_reversed_labels

INT8, FP32 = SHIPPED / "model.int8.onnx", SHIPPED / "model.fp32.onnx"


def test_it_finds_what_the_card_says(int8_file: Path) -> None:
    card = read_artifact(int8_file).card
    found = evaluate(int8_file)
    says = card.accuracy
    assert says is not None
    assert (found.n, found.top1, found.top5, found.ci95) == (says.n, says.top1, says.top5, says.ci95)
    assert any("is the data set that the model was trained on; its test images took no part" in n for n in found.notes)
    training = evaluate(int8_file, EvalConfig(split="train"))
    assert any("TRAINING images" in n for n in training.notes)
    assert card.calibration is not None
    calibrated = len(card.calibration.images)
    assert f"{calibrated} of these images calibrated this INT8 file" in training.notes[-1]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_nothing_is_claimed_of_a_model_from_elsewhere(split: str, int8_file: Path, tmp_path: Path) -> None:
    theirs = reseal(int8_file, tmp_path / "m.onnx", lambda card: card["origin"].update(training={}))
    notes = " ".join(evaluate(theirs, EvalConfig(split=split)).notes)
    assert "whether it was trained on these images is not known" in notes
    assert "took no part" not in notes


def test_every_number_follows_from_the_single_answers() -> None:
    rows: list[Scored] = []
    found = evaluate(INT8, EvalConfig(batch_size=7), each=rows.append)
    assert len(rows) == found.n == 1000
    right = sum(r.label == r.predicted for r in rows)
    assert found.top1 == pytest.approx(right / 10)
    assert right == sum(r.rank == 1 for r in rows)
    assert found.top5 == pytest.approx(sum(r.rank <= 5 for r in rows) / 10)
    assert found.ci95[0] < found.top1 < found.ci95[1]
    assert found.notes == ()
    pairs = Counter((r.label, r.predicted) for r in rows)
    for i, true in enumerate(found.labels):
        assert found.confusion[i] == tuple(pairs[true, answer] for answer in found.labels)
    for score in found.classes:
        answered = sum(n for (_, answer), n in pairs.items() if answer == score.label)
        wrong = {a: n for (t, a), n in pairs.items() if t == score.label != a}
        assert score.n == 100
        assert score.recall == pairs[score.label, score.label] / 100
        assert score.precision == pytest.approx(pairs[score.label, score.label] / answered)
        assert score.precision is not None
        assert score.f1 == pytest.approx(2 * score.precision * score.recall / (score.precision + score.recall))
        assert score.confused == max(wrong.values(), default=0)
        assert score.confused_with is None or wrong[score.confused_with] == score.confused
    for name in ("precision", "recall", "f1"):
        assert getattr(found.macro, name) == pytest.approx(sum(getattr(s, name) for s in found.classes) / 10)


def test_accuracies_are_printed_to_two_places(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    third = reseal(INT8, tmp_path / "m.onnx", lambda card: card["accuracy"].update(top1=200 / 3))
    assert run(["inspect", str(third)]) == 0
    assert "66.67 % top-1 (" in capsys.readouterr().out
    assert run(["eval", str(third)]) == 0
    assert "the card says 66.67 % top-1 on" in capsys.readouterr().out


def test_classes_are_matched_by_name(boots: Path) -> None:
    rows: list[Scored] = []
    found = evaluate(FP32, EvalConfig(data=str(boots), split="all"), each=rows.append)
    assert found.n == 60
    assert found.top1 >= 90
    assert {r.image for r in rows} == {str(p) for p in boots.rglob("[0-9]*.png")}
    assert all(Path(r.image).parent.name == r.label for r in rows)
    assert "7 of the model's 10 labels have no images: T-shirt/top," in found.notes[0]
    assert "another order" in found.notes[1]
    assert len(found.problems) == 1
    assert "torn.png" in found.problems[0]
    assert found.classes[0].recall is None


def test_a_model_with_reversed_outputs_is_as_good(boots: Path, tmp_path: Path) -> None:
    reversed_file = with_reversed_labels(FP32, tmp_path / "m.onnx")
    config = EvalConfig(data=str(boots), split="all")
    found, sound = evaluate(reversed_file, config), evaluate(FP32, config)
    assert found.top1 == sound.top1
    assert found.confusion == tuple(row[::-1] for row in sound.confusion[::-1])


def test_a_split_of_a_folder_is_the_one_that_training_cuts(boots: Path) -> None:
    rows: list[Scored] = []
    found = evaluate(FP32, EvalConfig(data=str(boots)), each=rows.append)
    assert found.n == 9  # 15 % of each class
    assert all(Path(r.image).is_file() and Path(r.image).parent.name == r.label for r in rows)


def test_images_are_decoded_when_their_batch_comes(boots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Image.Image] = []

    def counted(image: Image.Image) -> str:
        decoded.append(image)
        return ""

    monkeypatch.setattr("qdeploy.data.labelled.image_hash", counted)
    batches = labelled_images(str(boots), "all", Preprocessing(), FASHION_CLASSES).batches(8)
    for i in (1, 2):
        assert len(next(batches).labels) == 8
        assert len(decoded) == 8 * i


def test_a_class_that_the_model_does_not_know_is_named(boots: Path, tmp_path: Path) -> None:
    for name in ("Sandals", "Hat"):
        (tmp_path / "other" / name).mkdir(parents=True)
    with pytest.raises(DataError, match="has the class 'Hat' .and 1 more. that the model does not know") as caught:
        evaluate(FP32, EvalConfig(data=str(tmp_path / "other"), split="all"))
    assert "\n" not in str(caught.value)
    (tmp_path / "other" / "Hat").rename(tmp_path / "other" / "Shirt")
    with pytest.raises(DataError, match="did you mean 'Sandal'"):
        evaluate(FP32, EvalConfig(data=str(tmp_path / "other"), split="all"))
    (tmp_path / "other" / "Sandals").rename(tmp_path / "other" / "Sandal")
    with pytest.raises(DataError, match="no usable image"):
        evaluate(FP32, EvalConfig(data=str(tmp_path / "other"), split="all"))


@pytest.mark.slow
def test_what_is_lost_against_another_file_is_judged_image_by_image(tmp_path: Path) -> None:
    same = evaluate(INT8, EvalConfig(against=FP32)).against
    assert same is not None
    assert same.shown is Shown.WITHIN
    assert same.accepted
    assert same.difference.n == same.flips.n == 1000
    noisy = with_noise(FP32, tmp_path / "noisy.onnx")
    worse = evaluate(noisy, EvalConfig(against=FP32)).against
    assert worse is not None
    assert worse.shown is Shown.OVER
    assert not worse.accepted
    lost = evaluate(FP32).top1 - evaluate(noisy).top1
    assert -worse.difference.points == pytest.approx(lost)
    few = evaluate(INT8, EvalConfig(against=FP32, max_drop=0.01)).against
    assert few is not None
    assert few.shown is Shown.NOT_SHOWN
    with pytest.raises(InputError, match="has other labels or another preprocessing; compare files of one model"):
        evaluate(INT8, EvalConfig(against=with_reversed_labels(FP32, tmp_path / "reversed.onnx")))


@pytest.mark.parametrize(("words", "code"), [([], 0), (["--max-drop", "0.01", "--strict"], 1)])
def test_its_exit_code_is_the_answer(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", str(INT8), "--against", str(FP32), *words]) == code
    assert "answers differ; within" in capsys.readouterr().out or code == 1
