from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qdeploy.checks import doctor
from qdeploy.checks.doctor import Diagnosis, diagnose, engine_finding, folder_finding, int8_finding
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.card import Goldens
from qdeploy.runtime.engines import tensorrt_library
from qdeploy.runtime.session import ENGINES, Engine
from tests.contracts.stand_in_gpu import StandInCuda, stand_in_tensorrt


def by_name(result: Diagnosis) -> dict[str, doctor.Finding]:
    assert result.ok == all(c.status != "problem" for c in result.checks)
    return {c.name: c for c in result.checks}


def test_this_machine_runs_the_shipped_model() -> None:
    result = diagnose()
    found = by_name(result)
    assert result.ok
    assert found["engine ort"].status == "ok"
    assert "goldens of the shipped model agree" in found["engine ort"].detail
    assert {"python", "base", "cpu", "cores", "memory", "runs", "exports", "cache", "gpu", "shipped model"} <= set(
        found
    )
    assert all(c.detail for c in result.checks)
    assert all(c.fix == "" for c in result.checks if c.status == "ok")
    extras = {n for n in found if n.startswith("extra ")}
    assert {"extra train", "extra tensorrt"} <= extras
    assert "extra dev" not in extras


def test_what_is_not_installed_says_what_to_install() -> None:
    absent = Engine("qdeploy.no_such_engine:Session", "qdeploy.no_such_engine", "qdeploy[x]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENGINES, "x", absent)
        found = engine_finding("x", absent, read_artifact(SHIPPED / "model.int8.onnx"))
    assert found.status == "missing"
    assert found.fix == "pip install 'qdeploy[x]'"


def test_a_damaged_shipped_model_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = Path(shutil.copytree(SHIPPED, tmp_path / "shipped"))
    file = shipped / "model.int8.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    monkeypatch.setattr(doctor, "SHIPPED", shipped)
    result = diagnose()
    assert not result.ok
    assert by_name(result)["shipped model"].status == "problem"


def test_wrong_answers_are_a_problem() -> None:
    artifact = read_artifact(SHIPPED / "model.fp32.onnx")
    sound = artifact.card.goldens
    goldens = Goldens.of(sound.images, sound.logits + 1, sound.min_sqnr_db)
    wrong = replace(artifact, card=replace(artifact.card, goldens=goldens))
    found = engine_finding("ort", ENGINES["ort"], wrong)
    assert found.status == "problem"
    assert "gives wrong answers" in found.detail


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    found = folder_finding("cache", tmp_path / "file" / "below")
    assert found.status == "problem"
    assert "QDEPLOY_CACHE" in found.fix
    assert folder_finding("cache", tmp_path / "new" / "one").status == "ok"
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(doctor, "LEAST_FREE_BYTES", 1 << 62)
    assert folder_finding("runs", tmp_path).status == "problem"


@pytest.mark.parametrize(
    ("machine", "flags", "status", "says", "target"),
    [
        ("x86_64", {"avx2", "avx512_vnni"}, "ok", "avx512_vnni: fast INT8", "x86"),
        ("x86_64", {"avx2"}, "missing", "AVX2 without VNNI", "x86-avx2"),
        ("x86_64", {"sse4_1"}, "missing", "neither VNNI nor AVX2", "x86-avx2"),
        ("aarch64", {"asimd", "asimddp", "i8mm"}, "ok", "i8mm: fast INT8", "arm"),
        ("aarch64", {"asimd", "asimddp"}, "ok", "dot products: fast INT8", "arm"),
        ("aarch64", {"asimd"}, "missing", "no dot products", "arm"),
    ],
)
def test_cpu_flags_are_explained(
    machine: str, flags: set[str], status: str, says: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    for module in ("qdeploy.core.machine", "qdeploy.checks.doctor"):
        monkeypatch.setattr(f"{module}.cpu_flags", lambda: frozenset(flags))
    found = int8_finding()
    assert found.status == status
    assert says in found.detail
    assert target in found.detail + found.fix


@pytest.mark.parametrize(
    ("script", "status", "says"),
    [
        ("echo 'NVIDIA H100, 580.1, 81559 MiB, 9.0'", "ok", "H100"),
        ("echo 'could not talk to the driver' >&2; exit 9", "problem", "could not talk"),
    ],
)
def test_the_gpu_is_asked_for(
    script: str, status: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = doctor.gpu_finding()
    assert found.status == status
    assert says in found.detail


@pytest.mark.parametrize(
    ("cuda", "capability", "status"),
    [("13.0", "6.0", "problem"), ("13.0", "7.5", "ok"), ("12.8", "6.0", "problem"), ("12.6", "6.0", "ok")],
)
def test_a_gpu_that_the_installed_pytorch_has_no_kernels_for_is_a_problem(
    cuda: str, capability: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "torch" / "version.py").write_text(f"__version__ = '2.14.1'\ncuda: Optional[str] = '{cuda}'\n")
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '9.0'; echo '{capability}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    found = doctor.training_gpu_finding()
    assert found is not None
    assert found.status == status
    assert ("CUDA 12.6" in found.fix) == (status == "problem")
    (tmp_path / "torch" / "version.py").write_text("cuda: Optional[str] = None\n")
    assert doctor.training_gpu_finding() is None


def test_a_gpu_that_fails_is_a_problem_and_none_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    device = StandInCuda()
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in_tensorrt(device))
    monkeypatch.setattr(tensorrt_library, "load_cuda", lambda: device)
    artifact = read_artifact(SHIPPED / "model.fp32.onnx")
    found = {}
    for status in ("cudaSuccess", "cudaErrorNoDevice", "cudaErrorInvalidValue"):
        monkeypatch.setattr(device, "cudaGetDeviceCount", lambda name=status: (device.cudaError_t[name], 1))
        found[status] = engine_finding("tensorrt", ENGINES["tensorrt"], artifact).status
    assert found == {"cudaSuccess": "ok", "cudaErrorNoDevice": "missing", "cudaErrorInvalidValue": "problem"}
