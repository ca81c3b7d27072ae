from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from qdeploy.checks.diff import Difference, diff
from qdeploy.checks.evaluate import EvalConfig, Scored, evaluate
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.errors import DataError
from tests.confident import confident
from tests.resealed import reseal, with_noise, with_reversed_labels

INT8, FP32 = SHIPPED / "model.int8.onnx", SHIPPED / "model.fp32.onnx"


def changed(result: Difference) -> dict[str, tuple[Any, Any]]:
    return {f"{c.subject}.{c.field}": (c.a, c.b) for c in result.changes}


def test_int8_against_its_parent() -> None:
    result = diff(FP32, INT8)
    found = changed(result)
    assert found["precision.precision"] == ("fp32", "int8")
    assert found["precision.target"] == ("float", "x86")
    assert found["calibration.images"] == (None, 256)
    assert found["graph.QuantizeLinear"][0] is None
    assert {"model", "labels", "preprocessing", "training", "data", "versions"} <= set(result.same)
    assert result.meaning[0] == "B was made from A: its int8 form"
    assert result.numbers is not None
    assert result.numbers.parity.n == 1000
    assert result.numbers.parity.sqnr_db > 20
    assert result.numbers.p_value > 0.05
    assert re.search("no difference in accuracy|every answer is the same", result.meaning[-1])


def test_the_numbers_follow_from_the_single_answers(boots: Path, tmp_path: Path) -> None:
    worse = with_noise(FP32, tmp_path / "m.onnx")
    rows: tuple[list[Scored], list[Scored]] = ([], [])
    config = EvalConfig(data=str(boots), split="all")
    tops = tuple(evaluate(file, config, each=own.append).top1 for file, own in zip((FP32, worse), rows, strict=True))
    result = diff(FP32, worse, str(boots), "all")
    numbers, pairs = result.numbers, list(zip(*rows, strict=True))
    assert numbers is not None
    assert numbers.top1 == tops
    assert numbers.parity.flips == sum(a.predicted != b.predicted for a, b in pairs) > 10
    assert numbers.lost == sum(a.rank == 1 < b.rank for a, b in pairs) > 10
    assert numbers.gained == sum(b.rank == 1 < a.rank for a, b in pairs)
    assert 100 * (numbers.gained - numbers.lost) / 60 == pytest.approx(numbers.difference.points)
    assert sum(f.changed for f in numbers.flips) == numbers.parity.flips
    assert sum(f.lost for f in numbers.flips) == numbers.lost
    assert numbers.p_value < 0.001
    assert "points, McNemar p < 0.001: B is worse" in result.meaning[-1]
    assert result.meaning[-1].endswith("B is worse")


def test_a_file_and_itself(boots: Path, tmp_path: Path) -> None:
    copy = shutil.copy(INT8, tmp_path / "m.onnx")
    result = diff(INT8, Path(copy), str(boots), "all")
    assert result.changes == ()
    assert result.meaning[0] == "A and B are the same file"
    assert "every answer is the same" in result.meaning[-1]
    assert result.to_dict()["numbers"]["parity"]["sqnr_db"] is None


def test_outputs_in_another_order_are_compared_by_label(boots: Path, tmp_path: Path) -> None:
    result = diff(FP32, with_reversed_labels(FP32, tmp_path / "m.onnx"), str(boots), "all")
    assert any("another order" in text for text in result.meaning)
    assert result.numbers is not None
    assert result.numbers.parity.max_abs < 1e-4
    assert result.numbers.top1[0] == result.numbers.top1[1]


def test_other_labels_preprocessing_and_origin(tmp_path: Path) -> None:
    def change(card: dict[str, Any]) -> None:
        card["labels"] = [f"{label} of another shop" for label in card["labels"]]
        card["origin"]["training"]["seed"] = 7
        card["origin"]["git"] = {"commit": "abc", "dirty": False}
        card["origin"]["parent_sha256"] = "0" * 64
        card["goldens"]["min_sqnr_db"] = 0

    other = reseal(FP32, tmp_path / "m.onnx", change)
    result = diff(FP32, other)
    found = changed(result)
    assert found["training.seed"] == (0, 7)
    assert found["versions.commit"] == (None, "abc")
    assert result.numbers is None
    assert result.meaning[0] == "A and B are the same architecture, nano, with different weights"
    assert "the labels differ: the answers cannot be compared" in result.meaning
    assert "trained apart: training differ" in result.meaning
    with pytest.raises(DataError, match="have different labels"):
        diff(FP32, other, "fashion-mnist-mini")


def test_every_field_of_the_card_is_compared() -> None:
    left_out = {"schema", "task", "goldens", "float_layers"}
    card = read_artifact(INT8).card.to_dict()
    assert set(card) - left_out == {
        "name", "model", "labels", "preprocessing", "precision", "target", "origin", "accuracy",
        "calibration", "float_choice", "qat_epochs", "confidence",
    }  # fmt: skip


def test_another_temperature_and_threshold_are_told(tmp_path: Path) -> None:
    one, two = (confident(INT8, tmp_path / f"{t}.onnx", temperature=t, threshold=3 * t) for t in (1.5, 2.0))
    found = {c.field: (c.a, c.b) for c in diff(one, two).changes if c.subject == "confidence"}
    assert found == {"temperature": (1.5, 2.0), "threshold": (4.5, 6.0)}
    of_shipped = {c.field for c in diff(FP32, INT8).changes if c.subject == "confidence"}
    assert {"temperature", "threshold", "before.ece", "after.ece_ci95"} <= of_shipped
