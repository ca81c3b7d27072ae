from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdeploy.checks.verify import Verification, verify
from qdeploy.core.artifact import SHIPPED
from qdeploy.core.errors import ArtifactError, InputError
from qdeploy.core.signing import new_key
from qdeploy.data.catalog import load_dataset
from qdeploy.export import write_kits
from qdeploy.export.report.record import ExportReport
from qdeploy.runtime.engines import tensorrt_library, tensorrt_session
from tests.conftest import MakeImages
from tests.contracts.stand_in_gpu import StandInCuda, stand_in_tensorrt
from tests.contracts.test_tensorrt import engine_file
from tests.resealed import change_logits, reseal

INT8, FP32 = "model.int8.onnx", "model.fp32.onnx"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped export."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "export"))


def failed(result: Verification) -> set[str]:
    assert result.ok == (not any(c.ok is False for c in result.checks))
    return {c.name for c in result.checks if c.ok is False}


def test_a_whole_export_with_its_run_and_data(exported: ExportReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(exported.out).parents[1])
    result = verify(Path(exported.out), "fashion-mnist-mini")
    assert [c for c in result.checks if c.ok is not True] == []
    details = {c.name: c.detail for c in result.checks}
    assert details[f"{FP32}: parent"].startswith("exported from runs/small-run")
    assert details[f"{INT8}: parent"] == f"made from {FP32}"
    assert details[f"{INT8}: calibration apart from evaluation"].startswith("0 of 256")
    assert "ONNX Runtime " in details[f"{INT8}: goldens"]


def test_the_shipped_model_is_sound() -> None:
    result = verify(SHIPPED)
    assert result.ok
    assert [c.name for c in result.checks if c.ok is None] == [f"{FP32}: parent"]


def test_one_file_alone_says_what_it_cannot_know(tmp_path: Path) -> None:
    alone = Path(shutil.copy(SHIPPED / INT8, tmp_path / "m.onnx"))
    result = verify(alone)
    assert result.ok
    assert {c.name for c in result.checks if c.ok is None} == {"m.onnx: parent", "m.onnx: calibration"}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)


def edit(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def other_goldens(card: dict[str, Any]) -> None:
    change_logits(card, lambda rows: rows + 40 * np.eye(*rows.shape, dtype=np.float32))


def random_calibration(card: dict[str, Any]) -> None:
    card["calibration"]["random"] = True


DAMAGE: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "a flipped bit": (lambda f: flip(f / INT8), {f"{INT8}: checksum", f"{INT8}: report.json"}),
    "a file cut off": (lambda f: (f / INT8).write_bytes(b"abc"), {f"{INT8}: checksum", f"{INT8}: report.json"}),
    "a missing file": (lambda f: (f / INT8).unlink(), {f"{INT8}: report.json"}),
    "a missing parent": (lambda f: (f / FP32).unlink(), {f"{FP32}: report.json", f"{INT8}: parent"}),
    "a foreign file": (
        lambda f: shutil.copy(f / INT8, f / "model.int8.x.onnx"),
        {"model.int8.x.onnx: report.json"},
    ),
    "no report": (lambda f: (f / "report.json").unlink(), {"report.json"}),
    "a torn report": (lambda f: (f / "report.json").write_text('{"artifacts": [{'), {"report.json"}),
    "a report of something else": (lambda f: (f / "report.json").write_text("[1]"), {"report.json"}),
    "another calibration image": (
        lambda f: edit(f / "calibration.json", lambda c: c["images"].append("0" * 16)),
        {f"{INT8}: calibration"},
    ),
    "another hash of the calibration images": (
        lambda f: edit(f / "calibration.json", lambda c: c.update(images_sha256="0" * 64)),
        {f"{INT8}: calibration"},
    ),
    "wrong goldens": (
        lambda f: reseal(f / INT8, f / INT8, other_goldens),
        {f"{INT8}: goldens", f"{INT8}: report.json"},
    ),
    "random calibration": (
        lambda f: reseal(f / INT8, f / INT8, random_calibration),
        {f"{INT8}: calibration", f"{INT8}: report.json"},
    ),
    "a card of another size": (
        lambda f: reseal(f / FP32, f / FP32, lambda card: card["model"].update(num_classes=11)),
        {f"{FP32}: card", f"{FP32}: report.json", f"{INT8}: parent"},
    ),
    "labels that repeat": (
        lambda f: reseal(f / INT8, f / INT8, lambda card: card["labels"].__setitem__(0, card["labels"][1])),
        {f"{INT8}: card", f"{INT8}: report.json"},
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_where_it_is(name: str, folder: Path) -> None:
    damage, names = DAMAGE[name]
    damage(folder)
    result = verify(folder)
    assert failed(result) == names
    assert all("\n" not in c.detail for c in result.checks)


def test_random_calibration_is_refused_by_name(folder: Path) -> None:
    path = reseal(folder / INT8, folder / "alone.onnx", random_calibration)
    (check,) = (c for c in verify(path).checks if c.name == "alone.onnx: calibration")
    assert check.ok is False
    assert "RANDOM" in check.detail


def test_changed_weights_of_the_run_are_found(
    exported: ExportReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(exported.out).parents[1]
    shutil.copytree(root / "runs", tmp_path / "runs")
    (weights,) = (tmp_path / "runs").glob("*/best-*.safetensors")
    flip(weights)
    monkeypatch.chdir(tmp_path)
    assert failed(verify(Path(exported.out))) == {f"{FP32}: parent"}


def test_other_data_is_told(image_folder: MakeImages) -> None:
    result = verify(SHIPPED / INT8, str(image_folder(count=12)))
    assert failed(result) == {f"{INT8}: data", f"{INT8}: labels"}


def test_what_is_no_artifact_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("some text about qdeploy")
    with pytest.raises(ArtifactError, match="is not an ONNX file"):
        verify(tmp_path / "text.onnx")
    with pytest.raises(InputError, match="holds no model file"):
        verify(tmp_path)
    with pytest.raises(ArtifactError, match="cannot be read"):
        verify(tmp_path / "none.onnx")


def test_calibration_images_must_stay_apart_from_evaluation(folder: Path) -> None:
    measured = load_dataset("fashion-mnist-mini").splits["test"].hashes[0]

    def calibrate_on_it(card: dict[str, Any]) -> None:
        card["calibration"]["images"][0] = measured

    path = reseal(folder / INT8, folder / "alone.onnx", calibrate_on_it)
    checks = {c.name: c for c in verify(path, "fashion-mnist-mini").checks}
    assert checks["alone.onnx: calibration apart from evaluation"].ok is False


def test_an_engine_that_fails_on_its_gpu_is_a_failure_and_one_without_its_gpu_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = StandInCuda()
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in_tensorrt(device))
    for module in (tensorrt_library, tensorrt_session):
        monkeypatch.setattr(module, "load_cuda", lambda: device)
    tensorrt_library.messages.cache_clear()
    sound = verify(engine_file(tmp_path / "sound.engine"))
    assert "TensorRT 11.4.0, Stand-in" in next(c.detail for c in sound.checks if c.name == "sound.engine: goldens")
    assert failed(sound) == set()
    refused = engine_file(tmp_path / "refused.engine", plan=b"refused")
    assert failed(verify(refused)) == {"refused.engine: goldens"}
    monkeypatch.setattr(device, "cudaGetDeviceCount", lambda: (device.cudaError_t.cudaErrorNoDevice, None))
    assert {c.name: c.ok for c in verify(refused).checks}["refused.engine: goldens"] is None
    tensorrt_library.messages.cache_clear()


@pytest.mark.parametrize("name", ["c", "native", "ray", "triton"])
def test_a_kit_is_compared_with_its_own_list(name: str, tmp_path: Path) -> None:
    kit = write_kits(SHIPPED, [name], tmp_path)[name]
    (kit / "main.o").write_bytes(b"what a compiler made")
    result = verify(kit)
    assert result.ok
    assert result.checks[0].name == "SHA256SUMS"
    assert ("`device`" in result.checks[0].detail) == (name == "native")
    assert any(c.name.endswith("goldens") for c in result.checks) == (name != "native")
    flip(kit / "README.md")
    assert failed(verify(kit)) == {"SHA256SUMS"}
    (kit / "README.md").unlink()
    assert failed(verify(kit)) == {"SHA256SUMS"}


@pytest.mark.parametrize("name", ["native", "triton"])
def test_a_kit_s_list_is_no_signature(name: str, tmp_path: Path) -> None:
    public = new_key(tmp_path / "release.key")
    kit = write_kits(SHIPPED, [name], tmp_path)[name]
    wrong = {c.name.rpartition(": ")[2] for c in verify(kit, keys=[public]).checks if c.ok is False}
    assert wrong == {"signature"}


def test_data_are_not_left_out_in_silence(tmp_path: Path) -> None:
    kit = write_kits(SHIPPED, ["native"], tmp_path)["native"]
    with pytest.raises(InputError, match="`data` cannot be compared"):
        verify(kit, "fashion-mnist-mini")


SUM = 64 * "0"


@pytest.mark.parametrize(
    "text", ["", "no sums", f"{SUM}  ../other\n", f"{SUM}  /etc/hosts\n", f"{SUM}  a\n{SUM} *a\n", f"{SUM}\n"]
)
def test_a_kit_s_list_that_is_none_fails(text: str, tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text(text)
    assert failed(verify(tmp_path)) == {"SHA256SUMS"}
