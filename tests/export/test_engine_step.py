"""What the engine step makes of an engine that runs, fails, or cannot run here; on a stand-in for the GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qdeploy.bench import sample_images
from qdeploy.core.artifact import SHIPPED, Artifact, read_artifact
from qdeploy.core.errors import EngineError, VerdictError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.export.engines import step
from qdeploy.export.engines.step import EngineReport, build_engines
from qdeploy.runtime.engines import tensorrt_library, tensorrt_session
from qdeploy.runtime.session import open_session
from tests.contracts.stand_in_gpu import StandInCuda, stand_in_tensorrt
from tests.contracts.test_tensorrt import engine_file

IMAGES = sample_images(Preprocessing())[:8]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInCuda]:
    device = StandInCuda()
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in_tensorrt(device))
    for module in (tensorrt_library, tensorrt_session):
        monkeypatch.setattr(module, "load_cuda", lambda: device)
    tensorrt_library.messages.cache_clear()
    yield device
    tensorrt_library.messages.cache_clear()


def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fp32: Artifact, **changes: Any) -> EngineReport:
    """Build one engine, whose file is made here, and give its report."""
    with open_session(fp32) as session:
        logits, _ = session.infer(IMAGES)
    data = engine_file(tmp_path / "made", **changes).read_bytes()
    monkeypatch.setattr(step, "build_engine", lambda *_, **__: data)
    work: Any = SimpleNamespace(
        config=SimpleNamespace(builders=("tensorrt",)), parity_pixels=IMAGES, note=lambda _: None
    )
    made: Any = SimpleNamespace(data=fp32.data, card=fp32.card, parity_logits=logits, file="model.fp32.onnx")
    (report,) = build_engines(work, [made], tmp_path, Path("exports/nano"))
    return report


@pytest.fixture
def fp32() -> Artifact:
    return read_artifact(SHIPPED / "model.fp32.onnx")


@pytest.mark.usefixtures("cuda")
def test_an_engine_that_runs_is_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fp32: Artifact) -> None:
    report = built(monkeypatch, tmp_path, fp32)
    assert report.ran
    assert report.note == ""
    assert report.parity is not None
    assert report.parity["n"] == 8


@pytest.mark.usefixtures("cuda")
def test_an_engine_that_fails_on_its_own_gpu_fails_the_export(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fp32: Artifact
) -> None:
    with pytest.raises(EngineError, match=r"^model\.fp32\.trt\.engine was built .* refuses it: no kernel fits"):
        built(monkeypatch, tmp_path, fp32, plan=b"refused")


@pytest.mark.usefixtures("cuda")
def test_an_engine_with_other_answers_fails_the_export(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fp32: Artifact
) -> None:
    other = read_artifact(SHIPPED / "model.int8.onnx")
    with pytest.raises(VerdictError, match=r"parity failed at 'model\.fp32\.onnx to model\.fp32\.trt\.engine'"):
        built(monkeypatch, tmp_path, fp32, plan=other.data)


def test_only_a_gpu_that_is_not_here_is_no_failure(
    cuda: StandInCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fp32: Artifact
) -> None:
    report = built(monkeypatch, tmp_path, fp32, compute_capabilities=("8.6",))
    assert not report.ran
    assert report.note.startswith("model.fp32.trt.engine was built with tensorrt 11.4.0 for GPUs")
    monkeypatch.setattr(cuda, "cudaGetDeviceCount", lambda: (cuda.cudaError_t.cudaErrorNoDevice, None))
    report = built(monkeypatch, tmp_path, fp32)
    assert not report.ran
    assert "here is no usable GPU" in report.note
    assert report.parity is None
    monkeypatch.setattr(cuda, "cudaGetDeviceCount", lambda: (cuda.cudaError_t.cudaErrorInvalidValue, None))
    with pytest.raises(EngineError, match="cudaErrorInvalidValue"):
        built(monkeypatch, tmp_path, fp32)
