from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

from qdeploy.checks.diff import diff
from qdeploy.checks.verify import verify
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.errors import ArtifactError, InputError
from qdeploy.core.files import read_json, write_json
from qdeploy.core.html import join
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.reliability import scores_of
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Split
from qdeploy.data.labelled import labelled_images
from qdeploy.export import ExportConfig, recalibrate
from qdeploy.export.confidence import (
    Labelled,
    confidence_images,
    confidence_of,
    images_needed,
    require_threshold_images,
)
from qdeploy.export.graph.fp16 import to_fp16
from qdeploy.export.graph.temperature import with_temperature, without_temperature
from qdeploy.export.report.confidence import confidence_section
from qdeploy.export.report.record import ExportReport
from qdeploy.native.simulate import simulate
from qdeploy.native.source import program_of
from qdeploy.runtime.classifier import load
from qdeploy.runtime.session import open_session
from tests.confident import confident
from tests.core.test_reliability import drawn, some_logits
from tests.ort_session import plain_session
from tests.resealed import reseal

CLASSES = ("a", "b", "c", "d", "e")
SAME = SHIPPED / "model.int8.onnx"


def labelled(n: int, temperature: float, seed: int = 0) -> Labelled:
    logits = some_logits(n, seed)
    return Labelled(logits=logits, labels=drawn(logits, temperature, seed + 1000))


def softmax(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    p = np.exp((logits.astype(np.float64) - logits.max(1, keepdims=True)) / temperature)
    return p / p.sum(1, keepdims=True)


def test_too_sure_a_model_gets_a_temperature_that_helps_on_other_images() -> None:
    found, diagram = confidence_of(labelled(1000, 2.0), labelled(4000, 2.0, 1), CLASSES, None)
    assert found.temperature == pytest.approx(2.0, rel=0.1)
    assert found.before
    assert found.after
    assert found.after.ece < found.before.ece / 3
    assert found.after.nll < found.before.nll
    assert found.after.brier < found.before.brier
    assert found.threshold is None
    assert diagram is not None
    assert sum(b.n for b in diagram.before) == 4000


def test_a_model_that_is_right_as_it_is_keeps_temperature_1() -> None:
    found = [confidence_of(labelled(300, 1.0, i), labelled(50, 1.0), CLASSES, None)[0] for i in range(60)]
    changed = sum(f.temperature != 1 for f in found)
    assert changed <= 8  # 3 are expected of 60
    assert all("no more than noise" in f.reason for f in found if f.temperature == 1)


def test_so_many_validation_images_keep_their_label_as_was_asked() -> None:
    val, test = labelled(1000, 2.0), labelled(4000, 2.0, 1)
    for coverage in (0.5, 0.8, 0.95):
        found, _ = confidence_of(val, test, CLASSES, coverage)
        assert found.threshold is not None
        assert found.test_coverage == pytest.approx(coverage, abs=0.03)
        assert found.test_top1_answered is not None
        assert found.test_top1_answered >= 100 * float((test.logits.argmax(1) == test.labels).mean()) - 0.5
        assert (scores_of(val.logits, found.temperature) < found.threshold).sum() == round(1000 * (1 - coverage))


@pytest.mark.parametrize("file", ["model.fp32.onnx", "model.int8.onnx"])
def test_the_file_itself_answers_so_many_of_the_validation_images(file: str, tmp_path: Path) -> None:
    """Its answers are rounded otherwise than the scores that set the threshold: no image lies on it."""
    for percent in (95, 90, 80):
        recalibrate(SHIPPED / file, "fashion-mnist-mini", coverage=percent / 100, out=tmp_path / "model.onnx")
        classifier = load(tmp_path / "model.onnx")
        batches = labelled_images("fashion-mnist-mini", "val", Preprocessing(), classifier.card.labels).batches(1)
        answered = sum(not classifier.classify(batch.pixels)[0].unknown for batch in batches)
        assert answered == 5 * percent


@pytest.mark.parametrize("coverage", [0.0, 1.0, -1.0, 95.0, float("nan")])
def test_a_coverage_outside_0_and_1_is_refused(coverage: float) -> None:
    with pytest.raises(InputError, match="`coverage` must be between 0 and 1"):
        ExportConfig(coverage=coverage)


def test_too_few_images_are_told_with_how_many_it_takes() -> None:
    assert [images_needed(c) for c in (0.5, 0.9, 0.95, 0.99)] == [20, 100, 200, 1000]
    few = np.arange(199) % 5
    with pytest.raises(InputError, match="takes 200 validation images.*found 199"):
        require_threshold_images(few, CLASSES, 0.95)
    require_threshold_images(np.arange(200) % 5, CLASSES, 0.95)
    require_threshold_images(few, CLASSES, None)
    found, _ = confidence_of(labelled(99, 2.0), labelled(50, 2.0), CLASSES, None)
    assert found.temperature == 1
    assert "takes 100" in found.reason


def test_of_many_validation_images_as_many_are_run_as_the_threshold_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert images_needed(0.99999) == 1_000_000
    labels = np.arange(12_000) % 5
    split = Split(pixels=np.zeros((12_000, 1, 1, 3), np.uint8), labels=labels, hashes=("",) * 12_000)
    assert len(confidence_images(split)) == 5000
    run = confidence_images(split, 0.999)
    assert len(run) == 10_000
    require_threshold_images(run.labels, CLASSES, 0.999)
    monkeypatch.setattr("qdeploy.export.confidence.MOST_IMAGES", 100)
    file, data = SHIPPED / "model.int8.onnx", "fashion-mnist-mini"
    assert 100 <= recalibrate(file, data, out=tmp_path / "few.onnx").confidence.images < 120
    assert 250 <= recalibrate(file, data, coverage=0.96, out=tmp_path / "more.onnx").confidence.images < 270


def test_a_class_without_validation_images_is_told() -> None:
    val = labelled(1000, 2.0)
    val = Labelled(logits=val.logits, labels=np.where(val.labels == 3, 0, val.labels))
    with pytest.raises(InputError, match="class 'd' has no validation images"):
        require_threshold_images(val.labels, CLASSES, 0.95)
    found, _ = confidence_of(val, labelled(50, 2.0), CLASSES, None)
    assert found.temperature == 1
    assert "class 'd'" in found.reason


def test_answers_that_are_no_numbers_set_nothing() -> None:
    val = labelled(400, 2.0)
    val.logits[7, 1] = np.nan
    found, diagram = confidence_of(val, val, CLASSES, None)
    assert (found.temperature, found.before, diagram) == (1, None, None)
    assert "not finite" in found.reason
    with pytest.raises(InputError, match="not finite"):
        confidence_of(val, val, CLASSES, 0.95)


def test_logits_that_are_all_equal_set_nothing() -> None:
    same = Labelled(logits=np.full((400, 5), 2.0, np.float32), labels=np.arange(400) % 5)
    found, _ = confidence_of(same, same, CLASSES, None)
    assert found.temperature == 1
    with pytest.raises(InputError, match="no threshold can be set"):
        confidence_of(same, same, CLASSES, 0.95)


@pytest.mark.parametrize("file", ["model.fp32.onnx", "model.int8.onnx"])
def test_the_graph_divides_what_goes_into_its_softmax_and_nothing_else(file: str) -> None:
    model = without_temperature(onnx.load(str(SHIPPED / file)))
    pixels = read_artifact(SHIPPED / file).card.goldens.images
    plain, _ = plain_session(model.SerializeToString()).run(None, {"image": pixels})
    hot = with_temperature(with_temperature(model, 3.0), 1.7)
    onnx.checker.check_model(hot, full_check=True)
    logits, probabilities = plain_session(hot.SerializeToString()).run(None, {"image": pixels})
    assert np.array_equal(logits, plain)
    assert np.abs(probabilities - softmax(plain, 1.7)).max() < 1e-6
    bare = model.SerializeToString(deterministic=True)
    assert without_temperature(hot).SerializeToString(deterministic=True) == bare
    assert with_temperature(hot, 1.0).SerializeToString(deterministic=True) == bare


def test_an_fp16_graph_has_a_temperature_too() -> None:
    half = to_fp16(without_temperature(onnx.load(str(SHIPPED / "model.fp32.onnx"))))
    pixels = read_artifact(SHIPPED / "model.fp32.onnx").card.goldens.images
    logits, probabilities = plain_session(with_temperature(half, 2.0).SerializeToString()).run(None, {"image": pixels})
    assert np.abs(probabilities - softmax(logits, 2.0)).max() < 2e-3


def test_the_compiled_model_has_the_temperature(tmp_path: Path) -> None:
    artifact = read_artifact(confident(SAME, tmp_path / "model.onnx", temperature=2.0))
    program = program_of(artifact)
    found = simulate(program, artifact.card.goldens.images[0])
    logits, probabilities = (found[t.name].reshape(1, -1) for t in program.outputs)
    assert np.abs(probabilities - softmax(logits, 2.0)).max() < 1e-5


def test_an_export_says_how_far_its_probabilities_can_be_trusted(exported: ExportReport) -> None:
    for row in exported.artifacts:
        artifact = read_artifact(Path(row.path))
        found = artifact.card.confidence
        assert found is not None
        assert found == row.confidence
        assert (found.images, found.test_images) == (500, 1000)
        assert found.threshold is None
        logits, probabilities = open_session(artifact).infer(artifact.card.goldens.images)
        assert np.abs(probabilities - softmax(logits, found.temperature)).max() < 1e-5
    page = (Path(exported.out) / "report.html").read_text()
    assert "ECE" in page
    assert page.count("<svg") >= len(exported.artifacts)


def test_a_file_is_calibrated_in_its_folder(exported: ExportReport, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exported.out, folder)
    before = {name: read_artifact(folder / name) for name in ("model.fp32.onnx", "model.int8.onnx")}
    notes: list[str] = []
    for name, artifact in before.items():
        made = recalibrate(folder / name, "fashion-mnist-mini", coverage=0.9, note=notes.append)
        after = read_artifact(folder / name)
        assert after.card.confidence == made.confidence
        assert after.card.confidence is not None
        assert after.card.confidence.before_sha256 == artifact.sha256
        assert after.card.confidence.temperature == artifact.card.temperature  # the same images set it
        assert made.confidence.test_coverage == pytest.approx(0.9, abs=0.06)
        pixels = artifact.card.goldens.images
        assert np.array_equal(open_session(after).infer(pixels)[0], open_session(artifact).infer(pixels)[0])
    checks = verify(folder)
    assert [c for c in checks.checks if c.ok is False] == []
    rows = read_json(folder / "report.json")["artifacts"]
    assert [r["sha256"] for r in rows] == [read_artifact(folder / Path(r["path"]).name).sha256 for r in rows]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert join(confidence_section(rows)) in page
    again = recalibrate(folder / "model.fp32.onnx", "fashion-mnist-mini", out=tmp_path / "other.onnx")
    assert again.confidence.before_sha256 == before["model.fp32.onnx"].sha256
    assert again.confidence.threshold is None


def test_the_images_are_those_of_the_training_s_formats(tmp_path: Path) -> None:
    """With others among them a folder is cut otherwise, and half of the validation images were trained on."""
    labels, rng = [f"class{k}" for k in range(10)], np.random.default_rng(0)
    for label in labels:
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(120):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{i}.{'bmp' if i % 3 == 0 else 'png'}")

    def change(card: dict[str, Any]) -> None:
        card["labels"] = labels
        card["origin"]["training"]["formats"] = "png"

    file, data = reseal(SAME, tmp_path / "png.onnx", change), str(tmp_path / "data")
    splits = load_dataset(data, Preprocessing().taking(["png"])).splits
    assert recalibrate(file, data, out=tmp_path / "new.onnx").confidence.images == len(splits["val"])
    numbers = diff(file, tmp_path / "new.onnx", data).numbers
    assert numbers is not None
    assert numbers.parity.n == len(splits["test"])


def test_a_page_without_the_part_gets_it(exported: ExportReport, tmp_path: Path) -> None:
    """An export without labelled images has none."""
    shutil.copytree(exported.out, folder := tmp_path / "export")
    report, page = folder / "report.json", folder / "report.html"
    document = read_json(report)
    part = join(confidence_section(document["artifacts"]))
    page.write_text(page.read_text(encoding="utf-8").replace(part, ""), encoding="utf-8")
    for row in document["artifacts"]:
        row["confidence"] = row["diagram"] = None
    write_json(report, document)
    recalibrate(folder / "model.fp32.onnx", "fashion-mnist-mini")
    text = page.read_text(encoding="utf-8")
    assert text.count("<h2>Confidence</h2>") == 1
    assert text.endswith("</html>\n")


def test_verify_finds_a_card_that_names_another_temperature(tmp_path: Path) -> None:
    file = confident(SAME, tmp_path / "model.onnx", temperature=2.0)
    assert verify(file).ok
    model = with_temperature(onnx.load(str(file)), 1.3)
    wrong = reseal(file, tmp_path / "wrong.onnx", lambda card: None, model)
    failed = [c for c in verify(wrong).checks if c.ok is False]
    assert [c.name for c in failed] == ["wrong.onnx: confidence"]


def test_what_cannot_be_calibrated_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    shutil.copy(SAME, target)
    data = target.read_bytes()
    with pytest.raises(InputError, match="must be between 0 and 1"):
        recalibrate(target, "fashion-mnist-mini", coverage=1.5)
    with pytest.raises(InputError, match="takes 1000 validation images"):
        recalibrate(target, "fashion-mnist-mini", coverage=0.99)
    with pytest.raises(InputError, match="is a folder"):
        recalibrate(target, "fashion-mnist-mini", out=tmp_path)
    with pytest.raises(ArtifactError, match="does not exist|cannot be read"):
        recalibrate(tmp_path / "none.onnx", "fashion-mnist-mini")
    assert target.read_bytes() == data
