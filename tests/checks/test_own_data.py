"""The data that `eval` takes for a model's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qdeploy.checks.own_data import own_data
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.card import Card
from qdeploy.core.errors import DataError
from qdeploy.data.dataset import GENERATED


def card(name: str, labels: tuple[str, ...] = ("ant", "bee")) -> Card:
    shipped = read_artifact(SHIPPED / "model.int8.onnx").card
    dataset = replace(shipped.origin.dataset, name=name, sha256="0" * 64)
    return replace(shipped, labels=labels, origin=replace(shipped.origin, dataset=dataset))


def test_a_model_of_generated_images_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(GENERATED).mkdir()
    with pytest.raises(DataError, match="made without data; give `data`"):
        own_data(card(GENERATED))


def test_clothes_are_the_embedded_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    labels = read_artifact(SHIPPED / "model.int8.onnx").card.labels
    assert own_data(card("fashion-mnist", labels)) == "fashion-mnist-mini"
    assert own_data(card("cifar-10")) == "cifar-10"


def test_a_folder_of_the_name_is_taken_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="'photos' that the model was made with is not found here"):
        own_data(card("photos"))
    Path("photos").mkdir()
    assert own_data(card("photos")) == "photos"
