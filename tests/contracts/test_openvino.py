from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qdeploy.bench import sample_images
from qdeploy.core.artifact import SHIPPED, Artifact, read_artifact
from qdeploy.core.card import Goldens
from qdeploy.core.errors import ArtifactError, MissingDependencyError
from qdeploy.core.machine import saturates
from qdeploy.core.metrics import agreement, sqnr_db
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.runtime.session import BF16_GOLDEN_DB, check_goldens, open_session
from tests.contracts.engine_contract import EngineContract

openvino = pytest.importorskip("qdeploy.runtime.engines.openvino_session", reason="OpenVINO is not installed here")

TAKEN = SHIPPED / ("model.fp32.onnx" if saturates("x86") else "model.int8.onnx")
"""A shipped file that OpenVINO takes on this CPU."""


def computes_bf16() -> bool:
    return "BF16" in openvino.core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class Shipped(EngineContract):
    @pytest.fixture(params=["fp32", "int8"])
    def file(self, request: pytest.FixtureRequest) -> Path:
        file = SHIPPED / f"model.{request.param}.onnx"
        if request.param == "int8" and file != TAKEN:
            pytest.skip("OpenVINO refuses this file on this CPU, which has no VNNI")
        return file


class TestOpenVino(Shipped):
    engine = "openvino"
    says = r"OpenVINO \d+\.\d+\.\d+, CPU, f32"


@pytest.mark.skipif(not computes_bf16(), reason="this CPU computes no bfloat16")
class TestOpenVinoBf16(Shipped):
    engine = "openvino-bf16"
    says = r"OpenVINO \d+\.\d+\.\d+, CPU, bf16"
    atol = 0.1

    def test_it_really_computes_more_coarsely_and_agrees(self, file: Path) -> None:
        images = sample_images(Preprocessing())
        exact, coarse = (open_session(read_artifact(file), e).infer(images)[0] for e in ("openvino", self.engine))
        assert BF16_GOLDEN_DB <= sqnr_db(exact, coarse) <= 60
        assert agreement(exact, coarse) >= 0.95


def test_the_coarser_gate_holds_the_classes_too() -> None:
    artifact = read_artifact(SHIPPED / "model.fp32.onnx")
    goldens = artifact.card.goldens
    swapped = goldens.logits[:, ::-1].copy()
    for logits, golden_db in ((swapped, -100.0), (goldens.logits * 1.1, BF16_GOLDEN_DB)):
        other = Goldens.of(goldens.images, logits, goldens.min_sqnr_db)
        wrong = Artifact(artifact.path, artifact.data, replace(artifact.card, goldens=other))
        with pytest.raises(ArtifactError, match="gives wrong answers"):
            check_goldens(wrong, open_session(artifact), golden_db)


def test_a_cpu_without_bfloat16_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class OldCore:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino, "core", OldCore)
    with pytest.raises(MissingDependencyError, match="this CPU computes no bfloat16 .* use `engine=openvino` or"):
        open_session(read_artifact(TAKEN), "openvino-bf16")


def test_a_graph_it_refuses_is_one_line() -> None:
    artifact = read_artifact(SHIPPED / "model.fp32.onnx")
    with pytest.raises(ArtifactError, match="cannot be opened by OpenVINO") as caught:
        open_session(Artifact(artifact.path, artifact.data[:1000], artifact.card), "openvino")
    assert "\n" not in str(caught.value)


def test_parts_of_a_batch_are_put_together_in_order() -> None:
    artifact = read_artifact(TAKEN)
    images = sample_images(Preprocessing())[:11]
    with open_session(artifact, "openvino", threads=1) as session:
        together, probabilities = session.infer(images)
        again, _ = session.infer(images[::-1])
        assert session.infer(images[:0])[0].shape == (0, 10)
    assert np.allclose(together, again[::-1], atol=1e-4)
    assert sqnr_db(open_session(artifact).infer(images)[1], probabilities) >= 20


def test_it_reports_nothing_to_anybody(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from qdeploy.core.artifact import read_artifact
from qdeploy.runtime.session import open_session
open_session(read_artifact(Path({str(TAKEN)!r})), "openvino", 1)
print([m for m in sys.modules if "openvino_telemetry" in m or "tools.ovc" in m])
"""
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "[]\n"
    assert list(tmp_path.iterdir()) == []


CTRL_C = """
import signal, sys
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.runtime.session import open_session
artifact = read_artifact(SHIPPED / "model.fp32.onnx")
sessions = [open_session(artifact, "openvino", threads=1) for _ in range(3)]
while sessions:
    sessions.pop(0).close()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_still_interrupts_after_sessions_were_closed() -> None:
    done = subprocess.run([sys.executable, "-c", CTRL_C], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "interrupted\n")
