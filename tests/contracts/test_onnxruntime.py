from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from qdeploy.bench import sample_images
from qdeploy.core.artifact import SHIPPED, Artifact, read_artifact
from qdeploy.core.card import Goldens
from qdeploy.core.errors import ArtifactError, EngineError, InputError, MissingDependencyError
from qdeploy.core.metrics import sqnr_db
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.runtime.engines import onnxruntime_providers
from qdeploy.runtime.engines.onnxruntime_providers import BindingSession, CudaSession, ProviderSession, sees_gpu
from qdeploy.runtime.session import open_session
from tests.contracts.engine_contract import EngineContract

FP32 = SHIPPED / "model.fp32.onnx"
AZURE: tuple[tuple[str, dict[str, Any]], ...] = (("AzureExecutionProvider", {}),)
"""Is in every wheel and runs no node of ours."""


class TestOnnxRuntime(EngineContract):
    engine = "ort"
    says = r"ONNX Runtime \d+\.\d+\.\d+, CPU, library(, exact products)?"


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
        providers = AZURE

    with pytest.raises(ArtifactError, match="cannot be opened by ONNX Runtime .* fallback to CPU EP") as caught:
        Remote(read_artifact(FP32), 1)
    assert "\n" not in str(caught.value)


def test_without_a_gpu_nothing_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    if sees_gpu():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(CudaSession, "providers", AZURE)
    with pytest.raises(MissingDependencyError, match="needs an NVIDIA GPU, and no driver of this machine sees one"):
        open_session(read_artifact(FP32), "ort-cuda")


def test_a_provider_that_fails_on_a_gpu_is_a_failure_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_providers, "sees_gpu", lambda: True)
    monkeypatch.setattr(CudaSession, "providers", AZURE)
    with pytest.raises(EngineError, match="failed to open .* with AzureExecutionProvider: .*; see") as caught:
        open_session(read_artifact(FP32), "ort-cuda")
    assert caught.value.exit_code == 1


def test_the_binding_says_so_and_a_run_that_fails_there_is_one_line() -> None:
    artifact = read_artifact(FP32)
    session = BindingSession(artifact, 1)
    assert re.fullmatch(r"ONNX Runtime \d+\.\d+\.\d+, CPU, binding", session.engine)
    session.size = 32
    with pytest.raises(EngineError, match=r"^ONNX Runtime .*, binding failed with .*model\.fp32\.onnx: ") as caught:
        session.infer(np.zeros((1, 32, 32, 3), np.uint8))
    assert "\n" not in str(caught.value)


def test_a_provider_that_cannot_be_loaded_is_no_reason_to_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_providers, "sees_gpu", lambda: True)
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
