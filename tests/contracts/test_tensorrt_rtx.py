"""The real TensorRT-RTX, without a GPU; and either package with one, where there is one."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from qdeploy.bench import sample_images
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.errors import ArtifactError, MissingDependencyError
from qdeploy.core.metrics import agreement, sqnr_db
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.export.engines.build import BUILDERS, build_engine
from qdeploy.runtime.engines import tensorrt_library
from qdeploy.runtime.session import open_session

pytestmark = pytest.mark.xdist_group("engine of TensorRT-RTX")
SOURCE = SHIPPED / "model.fp32.onnx"


def gpu_or_reason() -> str | None:
    try:
        tensorrt_library.find_gpu()
    except MissingDependencyError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def rtx_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed on this machine")
    source = read_artifact(SOURCE)
    path = tmp_path_factory.mktemp("engine") / "model.fp32.rtx.engine"
    path.write_bytes(build_engine(source.data, source.card, "tensorrt_rtx"))
    return path


def test_without_a_gpu_opening_is_one_plain_line(rtx_engine: Path) -> None:
    if gpu_or_reason() is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(MissingDependencyError) as caught:
        open_session(read_artifact(rtx_engine), "tensorrt-rtx")
    text = str(caught.value)
    assert f"was built with tensorrt_rtx {version('tensorrt_rtx_cu13')} for GPUs of compute capability 8.0, 8.6" in text
    assert re.search(r"here is no usable GPU \(CUDA: .* \(cudaError\w+\)\)", text)
    assert "\n" not in text


def test_the_library_itself_refuses_without_a_gpu_and_does_not_end_the_process(rtx_engine: Path) -> None:
    if gpu_or_reason() is None:
        pytest.skip("this machine has a GPU")
    code = f"""
from pathlib import Path
from qdeploy.core.artifact import read_artifact
from qdeploy.core.errors import EngineError
from qdeploy.runtime.engines import tensorrt_session
tensorrt_session.find_gpu = lambda: tensorrt_session.Gpu(name="no GPU", compute_capability="8.9")
try:
    tensorrt_session.TensorRtSession(read_artifact(Path({str(rtx_engine)!r})), 1)
except EngineError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tensorrt_rtx on no GPU of compute capability 8.9 refuses it: " in done.stdout
    assert "CUDA driver version is insufficient" in done.stdout
    assert done.stdout.count("\n") == 1


def test_another_version_of_it_is_refused(rtx_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorrt_rtx.__version__", "1.8.0")
    with pytest.raises(ArtifactError, match=r"here is tensorrt_rtx 1.8.0; export it again with `tensorrt_rtx`"):
        open_session(read_artifact(rtx_engine), "tensorrt-rtx")


@pytest.mark.gpu
@pytest.mark.parametrize("builder", BUILDERS)
def test_on_a_gpu_an_engine_answers_as_onnx_runtime_does(builder: str, tmp_path: Path) -> None:
    reason = gpu_or_reason()
    if reason:
        pytest.skip(reason)
    pytest.importorskip(builder, reason=f"{builder} is not installed on this machine")
    source = read_artifact(SOURCE)
    (tmp_path / "m.engine").write_bytes(build_engine(source.data, source.card, builder))
    images = sample_images(Preprocessing())[:100]
    expected, _ = open_session(source).infer(images)
    with open_session(read_artifact(tmp_path / "m.engine"), builder.replace("_", "-")) as session:
        found, probabilities = session.infer(images)
    assert sqnr_db(expected, found) >= 60
    assert agreement(expected, found) >= 0.99
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-4)
