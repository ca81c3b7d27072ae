from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.engine_file import MAGIC, EngineHeader, pack, unpack
from qdeploy.core.errors import ArtifactError
from tests.resealed import engine_header

PLAN = bytes(range(256)) * 40


@pytest.fixture
def header() -> EngineHeader:
    return engine_header(SHIPPED / "model.int8.onnx")


@pytest.fixture
def file(header: EngineHeader, tmp_path: Path) -> Path:
    path = tmp_path / "model.int8.trt.engine"
    path.write_bytes(pack(header, PLAN))
    return path


def test_header_card_and_plan_come_back(header: EngineHeader, file: Path) -> None:
    artifact = read_artifact(file)
    assert artifact.engine == header
    assert artifact.card.to_dict() == header.card
    assert unpack(artifact.data) == (header, PLAN)
    assert read_artifact(SHIPPED / "model.int8.onnx").engine is None


def test_the_same_contents_give_the_same_bytes(header: EngineHeader) -> None:
    assert pack(header, PLAN) == pack(replace(header), bytes(PLAN))


def test_one_flipped_bit_anywhere_is_found(file: Path) -> None:
    sound = file.read_bytes()
    rng = np.random.default_rng(0)
    for at in [*range(48), *rng.integers(0, len(sound), 100)]:
        data = bytearray(sound)
        data[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(data)
        with pytest.raises(ArtifactError, match="damaged") as caught:
            read_artifact(file)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 8, 30, 44, 2000, -1])
def test_a_truncated_file_is_refused(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ArtifactError, match=r"damaged|has no qdeploy card" if size else "is empty"):
        read_artifact(file)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": 2}, "engine header of schema 2; this qdeploy reads 1"),
        ({"builder": 1}, "must be texts"),
        ({"max_batch": 0}, r"batches \(1, 1, 0\)"),
        ({"max_batch": "8"}, "batches"),
        ({"surplus": 1}, "unusable engine header: TypeError"),
        ({"card": {}}, "unusable card"),
        ({"card": []}, "must be texts, the card a table"),
        ({"compute_capabilities": None}, "unusable engine header"),
    ],
    ids=str,
)
def test_a_wrong_header_is_refused_even_with_a_right_checksum(
    header: EngineHeader, file: Path, change: dict[str, Any], says: str
) -> None:
    class Wrong:
        def to_dict(self) -> dict[str, Any]:
            return {**header.to_dict(), **change}

    file.write_bytes(pack(Wrong(), PLAN))  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match=says) as caught:
        read_artifact(file)
    assert "\n" not in str(caught.value)


def test_it_is_not_taken_for_text_or_onnx() -> None:
    assert MAGIC[0] >= 0x80
    assert not (SHIPPED / "model.int8.onnx").read_bytes().startswith(MAGIC[:1])


def test_inspect_shows_the_card_and_what_it_was_built_for(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(file)]) == 0
    text = capsys.readouterr().out
    assert "engine  tensorrt 11.4.0 for GPUs of compute capability 9.0 on Linux x86_64, batches of 1 to 8" in text
    assert "T-shirt" in text
    assert run(["inspect", str(file), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["engine"]["max_batch"] == 8
    assert "card" not in document["engine"]
    assert document["precision"] == "int8"
