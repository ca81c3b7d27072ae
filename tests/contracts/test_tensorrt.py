"""The contract, on a stand-in for the device; and what is refused."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdeploy.bench import sample_images
from qdeploy.core.artifact import SHIPPED, Artifact, read_artifact
from qdeploy.core.engine_file import EngineHeader, pack
from qdeploy.core.errors import ArtifactError, EngineError, InputError, MissingDependencyError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.runtime.engines import tensorrt_library, tensorrt_session
from qdeploy.runtime.engines.tensorrt_session import TensorRtSession
from qdeploy.runtime.session import open_session
from tests.contracts.engine_contract import EngineContract
from tests.contracts.stand_in_gpu import StandInCuda, stand_in_tensorrt

SOURCE = SHIPPED / "model.fp32.onnx"


def engine_file(path: Path, source: Path = SOURCE, plan: bytes | None = None, **changes: Any) -> Path:
    """Write an engine file whose plan is an ONNX file."""
    artifact = read_artifact(source)
    fields: dict[str, Any] = {
        "builder": "tensorrt",
        "builder_version": "11.4.0",
        "compute_capabilities": ("9.0",),
        "platform": "Linux x86_64",
        "min_batch": 1,
        "opt_batch": 1,
        "max_batch": 8,
        "precision": artifact.card.precision,
        "source_sha256": artifact.sha256,
        "card": artifact.card.to_dict(),
    }
    path.write_bytes(pack(EngineHeader(**{**fields, **changes}), artifact.data if plan is None else plan))
    return path


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInCuda]:
    device = StandInCuda()
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in_tensorrt(device))
    for module in (tensorrt_library, tensorrt_session):
        monkeypatch.setattr(module, "load_cuda", lambda: device)
    tensorrt_library.messages.cache_clear()
    yield device
    tensorrt_library.messages.cache_clear()


@pytest.mark.usefixtures("cuda")
class TestOnAStandIn(EngineContract):
    engine = "tensorrt"
    says = "TensorRT 11.4.0, Stand-in"

    @pytest.fixture(params=["fp32", "int8"])
    def file(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        return engine_file(tmp_path / "model.engine", SHIPPED / f"model.{request.param}.onnx")


def test_a_large_batch_runs_in_parts_of_the_engines(cuda: StandInCuda, tmp_path: Path) -> None:
    session = open_session(read_artifact(engine_file(tmp_path / "m.engine")), "tensorrt", selftest=False)
    assert session.engine == "TensorRT 11.4.0, Stand-in"
    images = sample_images(Preprocessing())[:19]
    logits, probabilities = session.infer(images)
    assert cuda.contexts[-1].batches == [8, 8, 3]
    expected = open_session(read_artifact(SOURCE)).infer(images)
    assert np.allclose(logits, expected[0], atol=1e-4)
    assert np.allclose(probabilities, expected[1], atol=1e-5)
    assert session.infer(images[:0])[0].shape == (0, 10)


def test_closing_or_losing_a_session_frees_the_device(cuda: StandInCuda, tmp_path: Path) -> None:
    artifact = read_artifact(engine_file(tmp_path / "m.engine"))
    session = open_session(artifact, "tensorrt")
    assert len(cuda.memory) == 3
    assert cuda.streams == 1
    session.close()
    assert not cuda.memory
    assert cuda.streams == 0
    open_session(artifact, "tensorrt")
    gc.collect()
    assert not cuda.memory


def test_too_little_memory_is_one_line_and_leaves_nothing(cuda: StandInCuda, tmp_path: Path) -> None:
    cuda.free_bytes = 1000
    with pytest.raises(EngineError, match="CUDA: cudaErrorMemoryAllocation"):
        open_session(read_artifact(engine_file(tmp_path / "m.engine")), "tensorrt")
    gc.collect()
    assert cuda.streams == 0


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"builder_version": "11.3.0"},
            "was built with tensorrt 11.3.0 for GPUs of compute capability 9.0 on Linux x86_64; here is tensorrt "
            "11.4.0; export it again with `tensorrt`",
        ),
        ({"compute_capabilities": ("8.6", "8.9")}, "here is Stand-in of compute capability 9.0; export it again"),
    ],
    ids=["version", "GPU"],
)
def test_an_engine_for_elsewhere_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        open_session(read_artifact(engine_file(tmp_path / "m.engine", **changes)), "tensorrt")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


REFUSED = "refuses it: no kernel fits; "


@pytest.mark.parametrize("builder", ["tensorrt", "tensorrt_rtx"])
def test_a_refusal_on_the_gpu_it_was_built_for_is_a_failure_of_the_engine(
    builder: str, cuda: StandInCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, builder, stand_in_tensorrt(cuda))
    file = engine_file(tmp_path / "m.engine", builder=builder, plan=b"refused")
    with pytest.raises(EngineError, match=f"{builder} on Stand-in of compute capability 9.0 {REFUSED}see") as caught:
        open_session(read_artifact(file), builder.replace("_", "-"))
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def test_a_refusal_on_another_gpu_is_none(cuda: StandInCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TensorRT-RTX compiles for the GPU when it opens the plan, so it judges the GPU itself."""
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", stand_in_tensorrt(cuda))
    changes: dict[str, Any] = {"builder": "tensorrt_rtx", "compute_capabilities": ("8.6", "8.9"), "plan": b"refused"}
    with pytest.raises(ArtifactError, match=f"{REFUSED}export it again with `tensorrt_rtx`"):
        open_session(read_artifact(engine_file(tmp_path / "m.engine", **changes)), "tensorrt-rtx")


def test_a_run_that_fails_is_a_failure_of_the_engine(cuda: StandInCuda, tmp_path: Path) -> None:
    session = open_session(read_artifact(engine_file(tmp_path / "m.engine")), "tensorrt")
    cuda.contexts[-1].fails = True
    with pytest.raises(EngineError, match="TensorRT failed: it gave no reason; see"):
        session.infer(sample_images(Preprocessing())[:1])


def test_without_a_device_nothing_failed(cuda: StandInCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda, "cudaGetDeviceCount", lambda: (cuda.cudaError_t.cudaErrorNoDevice, None))
    with pytest.raises(MissingDependencyError, match="here is no usable GPU .CUDA: cudaErrorNoDevice"):
        open_session(read_artifact(engine_file(tmp_path / "m.engine")), "tensorrt")


@pytest.mark.parametrize(
    ("builder", "engine", "says"),
    [
        ("tensorrt_rtx", "ort", "built with tensorrt_rtx, which ort cannot open; use `engine=tensorrt-rtx` or use the"),
        ("tensorrt_rtx", "tensorrt", "built with tensorrt_rtx, which tensorrt cannot open; use `engine=tensorrt-rtx`"),
        ("tensorrt", "tensorrt-rtx", "built with tensorrt, which tensorrt-rtx cannot open; use `engine=tensorrt` or"),
        (None, "tensorrt", "is an ONNX file, and tensorrt opens engines; an export with `tensorrt` makes one"),
        (None, "tensorrt-rtx", "an export with `tensorrt_rtx` makes one"),
    ],
)
def test_a_file_of_the_other_kind_says_what_opens_it(
    builder: str | None, engine: str, says: str, tmp_path: Path
) -> None:
    file = engine_file(tmp_path / "m.engine", builder=builder) if builder else SOURCE
    with pytest.raises(ArtifactError, match=says):
        open_session(read_artifact(file), engine)


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"tensorrt is not installed; run: pip install 'qdeploy\[tensorrt"):
        open_session(read_artifact(engine_file(tmp_path / "m.engine")), "tensorrt")


def test_a_package_that_cannot_be_loaded_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise OSError("libnvinfer.so.11:\ncannot open")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(MissingDependencyError, match="tensorrt cannot be loaded: libnvinfer.so.11: cannot open; inst"):
        tensorrt_library.load_package("tensorrt")


def test_the_session_itself_refuses_an_onnx_file() -> None:
    artifact = read_artifact(SOURCE)
    with pytest.raises(ArtifactError, match="is an ONNX file, not an engine"):
        TensorRtSession(Artifact(artifact.path, artifact.data, artifact.card), 1)


def test_an_unknown_engine_lists_all() -> None:
    with pytest.raises(InputError, match="known: .*tensorrt, tensorrt-rtx"):
        open_session(read_artifact(SOURCE), "tensor")
