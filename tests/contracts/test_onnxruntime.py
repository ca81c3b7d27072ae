from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import onnxruntime as ort
import pytest

from qdeploy.bench import sample_images
from qdeploy.core.artifact import SHIPPED, Artifact, read_artifact
from qdeploy.core.card import Goldens
from qdeploy.core.errors import ArtifactError, InputError, MissingDependencyError
from qdeploy.core.metrics import sqnr_db
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.runtime.engines.onnxruntime_providers import CudaSession, ProviderSession
from qdeploy.runtime.session import open_session
from tests.contracts.engine_contract import EngineContract

FP32 = SHIPPED / "model.fp32.onnx"


class TestOnnxRuntime(EngineContract):
    engine = "ort"
    says = "onnxruntime CPUExecutionProvider"


def test_wrong_goldens_are_noticed_at_opening(fp32_file: Path) -> None:
    artifact = read_artifact(fp32_file)
    sound = artifact.card.goldens
    goldens = Goldens.of(sound.images, sound.logits + 0.01, sound.min_sqnr_db)
    wrong = Artifact(artifact.path, artifact.data, replace(artifact.card, goldens=goldens))
    with pytest.raises(ArtifactError, match="gives wrong answers"):
        open_session(wrong)
    open_session(wrong, selftest=False).close()


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["ort-cuda", "ort-tensorrt"])
def test_on_a_gpu_a_provider_answers_as_the_cpu_does(engine: str) -> None:
    images = sample_images(Preprocessing())
    for file in (FP32, SHIPPED / "model.int8.onnx"):
        artifact = read_artifact(file)
        try:
            session = open_session(artifact, engine)
        except MissingDependencyError as error:
            pytest.skip(str(error))
        assert sqnr_db(open_session(artifact).infer(images)[0], session.infer(images)[0]) >= 20


@pytest.mark.parametrize(
    ("engine", "provider"), [("ort-cuda", "CUDAExecutionProvider"), ("ort-tensorrt", "TensorrtExecutionProvider")]
)
def test_a_provider_that_is_not_installed_says_what_to_install(engine: str, provider: str) -> None:
    if provider in ort.get_available_providers():
        pytest.skip(f"this machine has the {provider}")
    with pytest.raises(MissingDependencyError, match=f"has no {provider}; run: pip .* onnxruntime-gpu"):
        open_session(read_artifact(FP32), engine)


def test_a_provider_that_leaves_the_graph_to_the_cpu_is_refused() -> None:
    class Remote(ProviderSession):
        providers = (("AzureExecutionProvider", {}),)  # is in every wheel and runs no node of ours

    with pytest.raises(ArtifactError, match="cannot be opened by ONNX Runtime .* fallback to CPU EP") as caught:
        Remote(read_artifact(FP32), 1)
    assert "\n" not in str(caught.value)


def test_a_provider_that_cannot_be_loaded_is_no_reason_to_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda _: ["CPUExecutionProvider"])
    monkeypatch.setattr(CudaSession, "providers", (("AzureExecutionProvider", {}), ("CPUExecutionProvider", {})))
    with pytest.raises(MissingDependencyError, match="on CPUExecutionProvider instead of AzureExecutionProvider"):
        open_session(read_artifact(FP32), "ort-cuda")


def test_waiting_threads_do_not_burn_the_cpu() -> None:
    session = open_session(read_artifact(FP32), threads=2)
    images = sample_images(Preprocessing())[:1]
    session.infer(images)
    time.sleep(0.1)
    used = []
    for _ in range(5):
        session.infer(images)
        begin = time.process_time()
        time.sleep(0.02)
        used.append(time.process_time() - begin)
    assert sorted(used)[2] < 0.004


def test_a_graph_the_engine_refuses_is_one_line(fp32_file: Path) -> None:
    artifact = read_artifact(fp32_file)
    with pytest.raises(ArtifactError, match="cannot be opened by ONNX Runtime") as caught:
        open_session(Artifact(artifact.path, artifact.data[:1000], artifact.card))
    assert "\n" not in str(caught.value)


def test_an_unknown_engine_lists_the_known(fp32_file: Path) -> None:
    with pytest.raises(InputError, match="known: ort"):
        open_session(read_artifact(fp32_file), engine="orc")
