from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import qdeploy
from qdeploy.core.artifact import BLANK, CARD_KEY, CHECKSUM_KEY, SHIPPED, read_artifact, sealed
from qdeploy.core.card import Card, Goldens
from qdeploy.core.errors import ArtifactError
from qdeploy.core.machine import native_target
from qdeploy.core.metrics import sqnr_db
from qdeploy.core.onnx_bytes import operator_counts
from qdeploy.runtime import classifier


def test_the_card_survives_json(int8_file: Path) -> None:
    card = read_artifact(int8_file).card
    assert Card.from_dict(json.loads(json.dumps(card.to_dict()))) == card


@pytest.mark.parametrize("name", ["model.fp32.onnx", "model.int8.onnx"])
def test_a_card_of_schema_1_is_read(name: str) -> None:
    new = read_artifact(SHIPPED / name).card
    fields = new.to_dict()
    calibration, choice = fields.pop("calibration"), fields.pop("float_choice")
    origin = fields.pop("origin")
    lineage = {**origin, "trained": origin["created"]}
    if calibration:
        lineage |= {"qat_epochs": 0, "calibration": {k: v for k, v in calibration.items() if k != "random"}}
        lineage["float_choice"] = {k: v for k, v in choice.items() if v is not None}
    goldens = {k: v for k, v in fields["goldens"].items() if k != "logits_float32_base64"}
    logits = [[round(v, 6) for v in row] for row in new.goldens.rows]
    accuracy = {k: v for k, v in fields["accuracy"].items() if k != "against_fp32"}
    old = {**fields, "schema": 1, "lineage": lineage, "accuracy": accuracy, "goldens": {**goldens, "logits": logits}}
    read = Card.from_dict(old)
    assert read.goldens.sqnr_db(new.goldens.rows) > 100
    assert new.accuracy is not None
    assert read == replace(new, goldens=read.goldens, accuracy=replace(new.accuracy, against_fp32=None))


def test_goldens_are_exact() -> None:
    """Small logits, too: rounded to six decimals, these would miss their own floor of 80 dB."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=0.003, size=(4, 10)).astype(np.float32)
    goldens = Goldens.of(np.zeros((4, 8, 8, 3), np.uint8), logits, 80.0)
    again = Goldens.from_dict(json.loads(json.dumps(goldens.to_dict())))
    assert np.array_equal(again.logits, logits)
    rounded = np.round(logits, 6)
    assert goldens.sqnr_db(rounded.tolist()) < 80.0


def test_the_card_says_everything_a_user_needs(int8_file: Path, fp32_file: Path) -> None:
    card = read_artifact(int8_file).card
    assert card.precision == "int8"
    assert card.target == native_target()
    assert len(card.labels) == 10
    assert card.preprocessing.size == 64
    assert card.accuracy is not None
    assert card.accuracy.split == "test"
    assert card.accuracy.n == 1000
    assert card.model.config["dims"] == [16, 32, 64, 128]
    assert card.accuracy.against_fp32 is not None
    origin = card.origin
    assert origin.parent_sha256 == read_artifact(fp32_file).sha256
    assert card.calibration is not None
    assert len(card.calibration.images) == 256
    assert origin.training["seed"] == 0
    assert origin.dataset.name == "fashion-mnist-mini"
    assert {"torch", "onnx", "onnxruntime", "qdeploy"} <= set(origin.versions)
    assert card.goldens.images.shape == (4, 64, 64, 3)


@pytest.mark.parametrize("name", ["model.fp32.onnx", "model.int8.onnx"])
def test_one_flipped_bit_anywhere_is_found_before_any_engine_sees_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object) -> None:
        raise AssertionError("the engine was asked")

    monkeypatch.setattr(classifier, "open_session", opened)
    sound = (SHIPPED / name).read_bytes()
    copy = tmp_path / "model.onnx"
    rng = np.random.default_rng(0)
    for at in [*range(40), *rng.integers(0, len(sound), 130)]:
        data = bytearray(sound)
        data[at] ^= 1 << int(rng.integers(8))
        copy.write_bytes(data)
        with pytest.raises(ArtifactError) as caught:
            qdeploy.load(copy)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["weights.bin", "../weights.bin", "/etc/hostname", "*/_ORT_MEM_ADDR_/*"])
@pytest.mark.parametrize("nested", [False, True])
def test_weights_in_another_file_are_refused(where: str, nested: bool, tmp_path: Path) -> None:
    model = onnx.load(str(SHIPPED / "model.fp32.onnx"))
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    (tmp_path / "weights.bin").write_bytes(tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, where, 0, len(tensor.raw_data))
    tensor.ClearField("raw_data")
    if nested:  # a constant inside a branch
        model.graph.initializer.remove(tensor)
        constant = onnx.helper.make_node("Constant", [], ["c"], value=tensor)
        branch = onnx.helper.make_graph([constant], "branch", [], [])
        model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))
    card = read_artifact(SHIPPED / "model.fp32.onnx").card.to_dict()
    onnx.helper.set_model_props(model, {CARD_KEY: json.dumps(card), CHECKSUM_KEY: BLANK})
    (tmp_path / "m.onnx").write_bytes(sealed(model.SerializeToString()))
    with pytest.raises(ArtifactError, match="keeps weights in another file"):
        read_artifact(tmp_path / "m.onnx")


def test_operators_are_counted_as_by_onnx() -> None:
    file = SHIPPED / "model.int8.onnx"
    graph = onnx.load(str(file)).graph
    assert operator_counts(file.read_bytes()) == Counter(node.op_type for node in graph.node)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_refused(int8_file: Path, tmp_path: Path, share: float) -> None:
    data = int8_file.read_bytes()
    (tmp_path / "m.onnx").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ArtifactError):
        read_artifact(tmp_path / "m.onnx")


def test_a_foreign_onnx_file_is_refused_by_name(int8_file: Path, tmp_path: Path) -> None:
    model = onnx.load(str(int8_file))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "foreign.onnx"))
    with pytest.raises(ArtifactError, match="has no qdeploy card; .*`qdeploy quantize`"):
        read_artifact(tmp_path / "foreign.onnx")


def test_it_is_a_plain_valid_onnx_file_without_local_paths(fp32_file: Path, int8_file: Path) -> None:
    for file in (fp32_file, int8_file):
        model = onnx.load(str(file))
        onnx.checker.check_model(model, full_check=True)
        for weights in model.graph.initializer:
            weights.ClearField("raw_data")  # three of its bytes may well spell ".py"
        data = model.SerializeToString()
        for trace in (str(Path.home()), str(file.parents[3]), "site-packages", "qdeploy/models", ".py"):
            assert trace.encode() not in data


GOLDENS = read_artifact(SHIPPED / "model.int8.onnx").card.to_dict()["goldens"]
COUNT, CLASSES = GOLDENS["shape"][0], 10
LOGITS = GOLDENS["logits_float32_base64"]


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [float(n) for n in GOLDENS["shape"]]},
        {"shape": [COUNT, 64, 64, 4]},
        {"shape": [COUNT + 1, 64, 64, 3]},
        {"shape": None},
        {"logits_float32_base64": ""},
        {"logits_float32_base64": None},
        {"logits_float32_base64": LOGITS[: len(LOGITS) // 4 // COUNT * 4]},
        {"logits_float32_base64": "%" + LOGITS[1:]},
        {"logits": []},
        {"logits": [[0.0] * CLASSES] * (COUNT - 1)},
        {"logits": [[0.0] * (CLASSES - 1)] * COUNT},
        {"logits": [[10**400] * CLASSES] * COUNT},
        {"logits": [["a"] * CLASSES] * COUNT},
        {"min_sqnr_db": 10**400},
        {"min_sqnr_db": None},
        {"images_zlib_base64": "AAAA"},
    ],
    ids=lambda change: str(change)[:40],
)
def test_wrong_goldens_are_refused_by_the_card(change: dict[str, Any]) -> None:
    card = read_artifact(SHIPPED / "model.int8.onnx").card.to_dict()
    with pytest.raises(ArtifactError, match="has an unusable card"):
        Card.from_dict({**card, "goldens": {**GOLDENS, **change}})


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 99},
        {"labels": None},
        {"labels": []},
        {"labels": ["only one"]},
        {"labels": [1] * 10},
        {"model": {"name": "nano"}},
        {"model": []},
        {"origin": {}},
        {"origin": None},
        {"calibration": {"method": "mse", "images": "abc", "seed": 0, "random": False}},
        {"accuracy": {"split": "test", "top1": "93", "top5": 99.0, "n": 10, "ci95": [90, 95]}},
        {"qat_epochs": True},
        {"goldens": {}},
        {"preprocessing": {"std": []}},
    ],
    ids=str,
)
def test_a_wrong_card_is_refused_even_with_a_right_checksum(
    int8_file: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    model = onnx.load(str(int8_file))
    card = {**read_artifact(int8_file).card.to_dict(), **change}
    onnx.helper.set_model_props(model, {CARD_KEY: json.dumps(card), CHECKSUM_KEY: BLANK})
    (tmp_path / "m.onnx").write_bytes(sealed(model.SerializeToString()))
    with pytest.raises(ArtifactError, match="card"):
        read_artifact(tmp_path / "m.onnx")


def test_goldens_survive_a_dict() -> None:
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    goldens = Goldens.of(images, np.array([[0.5, 1.25]] * 2, np.float32), 20.0)
    again = Goldens.from_dict(goldens.to_dict())
    assert np.array_equal(again.images, images)
    assert np.array_equal(again.logits, goldens.logits)
    assert again == goldens


def test_goldens_measure_answers_as_everything_else_does() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 10)).astype(np.float32)
    other = logits + rng.normal(scale=0.01, size=(4, 10)).astype(np.float32)
    goldens = Goldens.of(np.zeros((4, 8, 8, 3), np.uint8), logits, 20.0)
    assert goldens.sqnr_db(other.tolist()) == pytest.approx(sqnr_db(logits, other), abs=1e-4)
    assert goldens.sqnr_db(logits.tolist()) == math.inf
    assert goldens.same_classes(other.tolist())
    assert not goldens.same_classes((-other).tolist())


@pytest.mark.parametrize("wrong", [math.inf, math.nan, 1e200])
def test_answers_that_are_no_numbers_never_agree(wrong: float) -> None:
    goldens = Goldens.of(np.zeros((1, 8, 8, 3), np.uint8), np.ones((1, 2), np.float32), 20.0)
    assert not goldens.sqnr_db([[1.0, wrong]]) >= 20.0


@pytest.mark.parametrize("rows", [[], [[1.0]], [[1.0, 1.0, 1.0]], [[1.0, 1.0]] * 2], ids=str)
def test_answers_of_another_number_never_agree(rows: list[list[float]]) -> None:
    goldens = Goldens.of(np.zeros((1, 8, 8, 3), np.uint8), np.ones((1, 2), np.float32), 20.0)
    assert goldens.sqnr_db(rows) == -math.inf
