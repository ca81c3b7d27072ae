from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qdeploy.bench import Comparison, Speed
from qdeploy.core.artifact import read_artifact
from qdeploy.core.errors import InputError, MissingDependencyError, VerdictError
from qdeploy.core.machine import saturates
from qdeploy.core.metrics import agreement, sqnr_db, topk_percent
from qdeploy.core.progress import no_progress
from qdeploy.data.catalog import load_dataset
from qdeploy.export import measure
from qdeploy.export.api import export
from qdeploy.export.config import ExportConfig
from qdeploy.export.finish import Work
from qdeploy.export.int8 import step as int8
from qdeploy.export.int8.float_choice import SearchConfig
from qdeploy.export.int8.quantize import int8_of_portable
from qdeploy.export.report.record import ExportReport
from qdeploy.export.sources import torch_model
from qdeploy.export.sources import trace as tracing
from qdeploy.export.sources.run import run_source
from qdeploy.training import TrainResult
from tests.conftest import SHORT
from tests.ort_session import plain_session

QUICK = ExportConfig(int8=True, search=SHORT, calibration="minmax", allow_drop=True, allow_slower=True)


def logits_of(file: Path, pixels: Any) -> Any:
    """Run the file with plain ONNX Runtime, as a user without qdeploy would."""
    return plain_session(str(file)).run(["logits"], {"image": pixels})[0]


def test_the_folder_holds_every_promised_file(exported: ExportReport) -> None:
    out = Path(exported.out)
    assert sorted(p.name for p in out.iterdir()) == [
        "calibration.json",
        "model.fp32.onnx",
        "model.int8.onnx",
        "report.html",
        "report.json",
    ]
    assert [p.name for p in out.parent.iterdir()] == [out.name]  # no leftovers
    report = json.loads((out / "report.json").read_text())
    assert report["artifacts"][1]["sha256"] == read_artifact(out / "model.int8.onnx").sha256
    page = (out / "report.html").read_text()
    assert exported.verdict.split(":")[0] in page
    assert "model.int8.onnx" in page


def test_the_graph_is_the_promised_contract(fp32_file: Path) -> None:
    model = onnx.load(str(fp32_file))
    assert max(o.version for o in model.opset_import if o.domain == "") >= 20
    (image,) = model.graph.input
    dims = [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim]
    assert image.name == "image"
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert dims[1:] == [64, 64, 3]
    assert isinstance(dims[0], str)
    assert [o.name for o in model.graph.output] == ["logits", "probabilities"]
    operators = {n.op_type for n in model.graph.node}
    assert not operators & {"BatchNormalization", "Resize", "Erf"}
    assert len(model.graph.node) <= 100


def test_fp32_is_within_a_ten_thousandth_on_real_images(exported: ExportReport) -> None:
    parity = exported.artifacts[0].parity
    assert parity.max_abs <= 1e-4
    assert parity.n == 500
    assert parity.top1_agreement == 1.0


def test_int8_numbers_in_the_report_are_those_of_the_files(
    exported: ExportReport, fp32_file: Path, int8_file: Path
) -> None:
    dataset = load_dataset()
    val, test = dataset.splits["val"], dataset.splits["test"]
    fp32, int8 = logits_of(fp32_file, val.pixels), logits_of(int8_file, val.pixels)
    parity = exported.artifacts[1].parity
    assert parity.sqnr_db == pytest.approx(sqnr_db(fp32, int8), abs=0.1)
    assert parity.sqnr_db >= 20
    assert parity.top1_agreement == pytest.approx(agreement(fp32, int8), abs=0.005)
    for report, file in zip(exported.artifacts, (fp32_file, int8_file), strict=True):
        assert report.accuracy is not None
        assert report.accuracy.top1 == pytest.approx(
            topk_percent(logits_of(file, test.pixels), test.labels, 1), abs=0.2
        )
        assert report.accuracy == read_artifact(file).card.accuracy
        assert report.size_bytes == file.stat().st_size
    assert exported.artifacts[1].size_bytes < 0.35 * exported.artifacts[0].size_bytes


def test_what_the_report_says_is_in_float_is_in_float(exported: ExportReport, int8_file: Path) -> None:
    graph = onnx.load(str(int8_file)).graph
    float_layers = read_artifact(int8_file).card.float_layers
    nodes = {n.name: n for n in graph.node}
    made_of_integers = {o for n in graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    convolutions = [n for n in nodes.values() if n.op_type == "Conv"]
    in_float = {n.name for n in convolutions if n.input[1] not in made_of_integers}
    assert in_float == {n.name for n in convolutions if n.name in float_layers}
    assert len(in_float) < len(convolutions)


def test_x86_encoding_is_unsigned_with_signed_weights_per_channel(int8_file: Path) -> None:
    graph = onnx.load(str(int8_file)).graph
    values = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    activations = {values[n.input[2]].dtype for n in graph.node if n.op_type == "QuantizeLinear"}
    assert activations == {np.dtype(np.uint8)}
    weights = [
        n for n in graph.node if n.op_type == "DequantizeLinear" and values.get(n.input[0], np.zeros(0)).ndim == 4
    ]
    assert len(weights) >= 20
    for node in weights:
        assert values[node.input[0]].dtype == np.int8
        assert values[node.input[1]].shape == values[node.input[0]].shape[:1]
        assert not values[node.input[2]].any()


@pytest.fixture(scope="session")
def for_tensorrt(trained: TrainResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tensorrt") / "export"
    report = export(Path(trained.run), replace(QUICK, target="tensorrt"), out)
    assert "must be measured on the target" in report.verdict
    return out / "model.int8.tensorrt.onnx"


@pytest.mark.xdist_group("export for TensorRT")
def test_tensorrt_encoding_is_symmetric_with_float_bias(for_tensorrt: Path) -> None:
    graph = onnx.load(str(for_tensorrt)).graph
    values = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    pairs = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 40
    for node in pairs:
        zero = values[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
        assert values.get(node.input[0], np.zeros(0, np.int8)).dtype == np.int8  # no int32 bias


@pytest.mark.xdist_group("export for TensorRT")
def test_tensorrt_encoding_is_accurate(for_tensorrt: Path, fp32_file: Path) -> None:
    pixels = load_dataset().splits["val"].pixels
    assert sqnr_db(logits_of(fp32_file, pixels), logits_of(for_tensorrt, pixels)) >= 20


def test_exports_are_reproducible(
    trained: TrainResult, fp32_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path))
    export(Path(trained.run), ExportConfig(), tmp_path / "again")
    assert (tmp_path / "again" / "model.fp32.onnx").read_bytes() == fp32_file.read_bytes()


def test_a_second_export_reads_the_graph_that_the_first_kept(
    trained: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> onnx.ModelProto:
        raise ValueError("traced again")

    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path))
    first = run_source(Path(trained.run))[0].graph
    monkeypatch.setattr(tracing, "trace", forbidden)
    assert run_source(Path(trained.run))[0].graph == first
    (kept,) = (tmp_path / "graphs").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(ValueError, match="traced again"):
        export(Path(trained.run), ExportConfig(), tmp_path / "damaged")


def test_a_broken_step_stops_the_export_and_leaves_nothing(
    trained: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qdeploy.export.sources.trace import trace_once as real

    def wrong_trace(*arguments: Any) -> onnx.ModelProto:
        model = real(*arguments)
        bias = next(i for i in model.graph.initializer if i.name == "head.fc.bias")
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(2e-2), bias.name))
        return model

    monkeypatch.setattr(torch_model, "trace_once", wrong_trace)
    with pytest.raises(VerdictError, match="parity failed at 'trained to fp32'"):
        export(Path(trained.run), ExportConfig(), tmp_path / "exports" / "x")
    assert list((tmp_path / "exports").iterdir()) == []


@pytest.mark.slow
def test_int8_whose_loss_too_few_images_show_is_kept_with_a_warning_or_rejected(
    trained: TrainResult, tmp_path: Path
) -> None:
    config = replace(QUICK, allow_drop=False, max_drop=0.01)
    strict = export(Path(trained.run), replace(config, strict=True), tmp_path / "strict")
    assert not strict.accepted
    assert re.search(
        r"INT8 REJECTED: .* points on the 333 validation images that the search did not see, \d+ of \d+ predictions",
        strict.verdict,
    )
    assert [a.precision for a in strict.artifacts] == ["fp32"]
    assert sorted(p.name for p in (tmp_path / "strict").glob("*.onnx")) == ["model.fp32.onnx"]
    assert strict.recommended == "model.fp32.onnx"
    loss = strict.int8[0].loss
    assert loss.flips is not None
    assert loss.flips.n == 2000 - 256 + 333 + 1000  # training without calibration, two thirds of validation, test
    relative = export(Path(trained.run), replace(config, max_drop_relative=9.0, strict=True), tmp_path / "relative")
    assert relative.accepted  # 9 % of some 70 points are more than six
    assert relative.artifacts[0].accuracy is not None
    assert relative.int8[0].budget.points == pytest.approx(0.09 * relative.artifacts[0].accuracy.top1)


@pytest.mark.slow
def test_int8_that_is_not_faster_is_rejected(
    trained: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tie = Comparison(model="int8", against="fp32", ratio=1.01, ci95=(0.99, 1.03), finding=Speed.NO_DIFFERENCE)
    monkeypatch.setattr(measure, "compare", lambda *_: tie)
    report = export(Path(trained.run), replace(QUICK, allow_slower=False), tmp_path / "x")
    assert not report.accepted
    assert (
        "INT8 REJECTED: not faster on this device; kept model.fp32.onnx; keep INT8 with `allow_slower`; measured: 1.01x"
        in report.verdict
    )
    assert report.int8[0].choices  # what was tried stays in the report
    assert not (tmp_path / "x" / "model.int8.onnx").exists()
    kept = export(Path(trained.run), QUICK, tmp_path / "kept")
    assert kept.accepted
    assert kept.recommended == "model.fp32.onnx"
    assert (tmp_path / "kept" / "model.int8.onnx").exists()


@pytest.mark.slow
def test_several_targets_come_from_one_calibration(trained: TrainResult, tmp_path: Path) -> None:
    config = replace(QUICK, target="auto, tensorrt,portable", calibration="mse")
    report = export(Path(trained.run), config, tmp_path / "x")
    files = {p.name for p in (tmp_path / "x").glob("*.onnx")}
    assert files == {"model.fp32.onnx", "model.int8.onnx", "model.int8.tensorrt.onnx", "model.int8.portable.onnx"}
    assert [i.native for i in report.int8] == [True, False, False]
    record = json.loads((tmp_path / "x" / "calibration.json").read_text())
    assert {t["method"] for t in record["targets"].values()} <= {"mse", "mse, bias correction"}
    portable = next(a for a in report.artifacts if a.target == "portable")
    rewritten = int8_of_portable(onnx.load(portable.path))
    pixels = load_dataset().splits["val"].pixels
    both = (rewritten.SerializeToString(), portable.path)
    found, expected = (plain_session(f, threads=1).run(["logits"], {"image": pixels})[0] for f in both)
    assert sqnr_db(expected, found) > 40
    if not saturates("portable"):  # a float is rounded otherwise now and then: on 1 or 2 of these 500 images
        assert (found != expected).any(axis=1).mean() <= 0.01


@pytest.mark.slow
def test_calibration_on_noise_is_stamped_and_few_images_of_a_class_are_told(
    trained: TrainResult, tmp_path: Path
) -> None:
    lines: list[str] = []
    config = replace(QUICK, random_calibration=True, calibration_images=16)
    report = export(Path(trained.run), config, tmp_path / "noise", lines.append)
    record = read_artifact(Path(report.artifacts[1].path)).card.calibration
    train = load_dataset().splits["train"]
    assert record is not None
    assert record.random
    assert len(record.images) == 16
    assert not set(record.images) & set(train.hashes)
    assert any("noise" in line for line in lines)
    few = np.concatenate([np.flatnonzero(train.labels > 0), np.flatnonzero(train.labels == 0)[:3]])
    poor = replace(load_dataset(), splits={**load_dataset().splits, "train": train.take(few)})
    lines.clear()
    shared: dict[str, Any] = {"name": "", "config": QUICK, "parity_pixels": train.pixels[:0]}
    work = Work(dataset=poor, note=lines.append, progress=no_progress, **shared)
    assert np.bincount(int8.calibration_images(work).labels)[0] == 3
    assert "only 3 of them are of the class 'T-shirt/top'" in lines[1]


def test_changed_data_is_noticed(trained: TrainResult, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    record = json.loads((run / "run.json").read_text())
    record["dataset"]["sha256"] = "0" * 64
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="has changed since training"):
        export(run, ExportConfig(), tmp_path / "x")


def test_a_folder_with_other_files_is_never_replaced(trained: TrainResult, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds 'thesis.tex'"):
        export(Path(trained.run), ExportConfig(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_tune_and_killed_writers_left_is_replaced_with_the_files(trained: TrainResult, tmp_path: Path) -> None:
    out, lines = tmp_path / "out", list[str]()
    out.mkdir()
    for name in ("model.fp32.onnx", "device.json", ".device.json.0badcafe.part"):
        (out / name).touch()
    export(Path(trained.run), ExportConfig(), out, note=lines.append)
    assert sorted(p.name for p in out.iterdir()) == ["model.fp32.onnx", "report.html", "report.json"]
    assert "device.json tells of the files that are replaced" in lines[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"target": "x68"},
        {"target": "x86,"},
        {"calibration": "minimax"},
        {"calibration_images": 0},
        {"max_drop": -1.0},
        {"max_drop_relative": 101.0},
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ExportConfig(**fields)


def test_a_missing_builder_is_told_before_any_work(
    trained: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qdeploy.export import pipeline

    def missing(builder: str) -> None:
        raise MissingDependencyError(f"{builder} is not installed")

    monkeypatch.setattr(pipeline, "require_builder", missing)
    notes: list[str] = []
    with pytest.raises(MissingDependencyError, match="tensorrt is not installed"):
        export(Path(trained.run), ExportConfig(tensorrt=True), tmp_path / "x", notes.append)
    assert notes == []
    assert not (tmp_path / "x").exists()


def test_the_former_name_of_the_search_s_runs_still_sets_them() -> None:
    config = replace(ExportConfig(choice_runs=10), int8=True)
    assert config.search == SearchConfig(runs=10)
    with pytest.raises(InputError, match="a search cannot be made"):
        ExportConfig(choice_runs=0)
