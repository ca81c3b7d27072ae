"""The model in the package: its claims are checked on the real 10,000 test images where they are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.files import read_json
from qdeploy.core.metrics import topk_percent
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.embedded import embedded_source
from qdeploy.data.fashion_mnist import fashion_mnist_source, local_folder
from qdeploy.export.graph.parity import run_session
from qdeploy.runtime.session import open_session

INT8 = SHIPPED / "model.int8.onnx"
FP32 = SHIPPED / "model.fp32.onnx"


def test_it_is_small_accurate_and_int8_costs_little() -> None:
    assert sum(p.stat().st_size for p in SHIPPED.iterdir()) <= 5e6
    fp32, int8 = (read_artifact(f).card.accuracy for f in (FP32, INT8))
    assert fp32 is not None
    assert int8 is not None
    assert int8.n == fp32.n == 10_000
    assert int8.top1 >= 93.0
    assert fp32.top1 - int8.top1 <= 0.3


def test_it_was_trained_on_the_full_set_and_says_how() -> None:
    origin = read_artifact(INT8).card.origin
    assert origin.dataset.name == "fashion-mnist"
    assert origin.dataset.images == {"train": 58_000, "val": 2_000, "test": 10_000}
    assert origin.parent_sha256 in read_artifact(FP32).known_as
    assert read_json(SHIPPED / "report.json")["recommended"] == "model.int8.onnx"


def test_it_classifies_the_embedded_test_images() -> None:
    # these 1,000 are among the 10,000 it was never trained on
    records = embedded_source().records["test"]
    classifier = qdeploy.load()
    answers = classifier([r.image() for r in records])
    right = sum(a.index == r.label for a, r in zip(answers, records, strict=True))
    assert right >= 915  # 93 % less two standard errors


@pytest.mark.parametrize("file", [INT8, FP32])
def test_its_confidence_is_calibrated_and_knows_its_limits(file: Path) -> None:
    found = read_artifact(file).card.confidence
    assert found is not None
    assert found.before is not None
    assert found.after is not None
    assert (found.images, found.test_images, found.coverage) == (2_000, 10_000, 0.95)
    assert found.after.ece < found.before.ece
    assert found.after.ece <= 0.015
    assert found.test_coverage == pytest.approx(0.95, abs=0.01)
    records = embedded_source().records["test"]
    answers = qdeploy.load(file)([r.image() for r in records])
    answered = [(a, r.label) for a, r in zip(answers, records, strict=True) if not a.unknown]
    assert len(answered) / len(records) == pytest.approx(found.test_coverage, abs=0.025)  # three standard errors
    assert sum(a.index == label for a, label in answered) / len(answered) >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("file", [INT8, FP32])
def test_the_card_s_accuracy_is_true(file: Path) -> None:
    folder = local_folder()
    if folder is None:
        pytest.skip("the full Fashion-MNIST is not on this machine")
    artifact = read_artifact(file)
    rules = Preprocessing()
    records = fashion_mnist_source(folder).records["test"]
    pixels = np.stack([rules(r.image()) for r in records])
    labels = np.asarray([r.label for r in records])
    top1 = topk_percent(run_session(open_session(artifact), pixels), labels, 1)
    assert artifact.card.accuracy is not None
    assert top1 == pytest.approx(artifact.card.accuracy.top1, abs=0.05)
