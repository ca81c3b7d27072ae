from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qdeploy.core.artifact import Artifact, read_artifact
from qdeploy.core.errors import ArtifactError, InputError
from qdeploy.runtime.session import open_session
from tests.contracts.engine_contract import EngineContract


class TestOnnxRuntime(EngineContract):
    engine = "ort"


def test_wrong_goldens_are_noticed_at_opening(fp32_file: Path) -> None:
    artifact = read_artifact(fp32_file)
    goldens = replace(artifact.card.goldens, logits=artifact.card.goldens.logits + 0.01)
    wrong = Artifact(artifact.path, artifact.data, replace(artifact.card, goldens=goldens))
    with pytest.raises(ArtifactError, match="gives wrong answers"):
        open_session(wrong)
    open_session(wrong, selftest=False).close()


def test_a_graph_the_engine_refuses_is_one_line(fp32_file: Path) -> None:
    artifact = read_artifact(fp32_file)
    with pytest.raises(ArtifactError, match="cannot be opened by ONNX Runtime") as caught:
        open_session(Artifact(artifact.path, artifact.data[:1000], artifact.card))
    assert "\n" not in str(caught.value)


def test_an_unknown_engine_lists_the_known(fp32_file: Path) -> None:
    with pytest.raises(InputError, match="known: ort"):
        open_session(read_artifact(fp32_file), engine="orc")
