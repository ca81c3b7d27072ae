"""ONNX files of other tools: probabilities instead of logits, channels last, old operators, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from qdeploy.cli.main import run
from qdeploy.core.artifact import read_artifact
from qdeploy.core.errors import InputError
from qdeploy.core.files import sha256_of
from qdeploy.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from qdeploy.data.catalog import load_dataset
from qdeploy.export import ExportConfig, export_onnx
from qdeploy.export.sources.onnx_file import adopted
from qdeploy.runtime.classifier import load
from tests.conftest import SHORT, MakeImages

CONFIG = ExportConfig(int8=True, search=SHORT, calibration="minmax", allow_drop=True, allow_slower=True)
MakeFile = Callable[..., Path]

CHANNELS_FIRST = """
<ir_version: 9, opset_import: ["" : {opset}]>
net (float[{batch}, 3, 16, 16] x) => (float[{batch}, {classes}] y)
{{
    a = Conv <kernel_shape = [3, 3], strides = [2, 2]> (x, w1)
    n = BatchNormalization (a, gain, shift, mean, variance)
    b = Relu (n)
    p = GlobalAveragePool (b)
    f = Flatten (p)
    y{raw} = Gemm (f, w2, b2)
    {tail}
}}
"""


@pytest.fixture
def make_file(tmp_path: Path) -> MakeFile:
    def make(opset: int = 17, batch: str = "N", classes: int = 2, softmax: bool = False, **tensors: Any) -> Path:
        text = CHANNELS_FIRST.format(
            opset=opset,
            batch=batch,
            classes=classes,
            raw="_raw" if softmax else "",
            tail="y = Softmax <axis = 1> (y_raw)" if softmax else "",
        )
        model = onnx.parser.parse_model(text)
        rng = np.random.default_rng(0)
        values = {
            "w1": rng.normal(0, 0.3, (8, 3, 3, 3)),
            "gain": rng.uniform(0.5, 2, 8),
            "shift": rng.normal(0, 0.1, 8),
            "mean": rng.normal(0, 0.1, 8),
            "variance": rng.uniform(0.5, 2, 8),
            "w2": rng.normal(0, 1, (8, classes)),
            "b2": rng.normal(0, 0.1, classes),
            **tensors,
        }
        for name, value in values.items():
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        path = tmp_path / "theirs.onnx"
        onnx.save(model, str(path))
        return path

    return make


@pytest.mark.parametrize("softmax", [False, True])
def test_a_foreign_file_gets_card_and_int8_and_gives_the_same_answers(
    softmax: bool, make_file: MakeFile, image_folder: MakeImages, tmp_path: Path
) -> None:
    file, data = make_file(softmax=softmax), str(image_folder(count=20))
    report = export_onnx(file, data, tmp_path / "out", config=CONFIG)
    assert [a.precision for a in report.artifacts] == ["fp32", "int8"]
    assert report.steps[0].step == "theirs.onnx to fp32"
    classifier = load(Path(report.artifacts[0].path))
    assert classifier.card.labels == ("cat", "dog")
    assert classifier.card.preprocessing.size == 16
    assert classifier.card.model.family == "onnx"
    pixels = load_dataset(data, classifier.card.preprocessing).splits["test"].pixels
    values = ((pixels.astype(np.float32) / 255 - IMAGENET_MEAN) / IMAGENET_STD).transpose(0, 3, 1, 2)
    theirs = ort.InferenceSession(str(file)).run(None, {"x": values.astype(np.float32)})[0]
    ours = classifier.session.infer(pixels)[1 if softmax else 0]
    assert np.abs(theirs - ours).max() <= 1e-4
    assert "BatchNormalization" not in {n.op_type for n in onnx.load(report.artifacts[0].path).graph.node}


def test_channels_last_needs_no_transpose(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 8, 8, 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 2])],
        [
            numpy_helper.from_array(np.asarray([1, 2]), "axes"),
            numpy_helper.from_array(np.ones((3, 2), np.float32), "w"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    from qdeploy.core.preprocessing import Preprocessing

    result = adopted(model, Preprocessing(size=8), tmp_path / "x.onnx")
    assert "Transpose" not in {n.op_type for n in result.graph.node}
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    found = ort.InferenceSession(result.SerializeToString()).run(["logits"], {"image": images})[0]
    values = (images / 255 - IMAGENET_MEAN) / IMAGENET_STD
    assert np.allclose(found[:, 0], values.mean(axis=(1, 2)).sum(axis=1), atol=1e-4)


def test_a_float_file_of_qdeploy_says_itself_how_it_is_fed(fp32_file: Path, tmp_path: Path) -> None:
    report = export_onnx(fp32_file, "fashion-mnist-mini", tmp_path / "out", config=CONFIG)
    before, after = load(fp32_file).card, load(Path(report.artifacts[0].path)).card
    assert after.preprocessing == before.preprocessing
    assert after.accuracy == before.accuracy
    assert after.model == before.model
    graphs = [
        onnx.load(str(f)).graph.SerializeToString(deterministic=True) for f in (fp32_file, report.artifacts[0].path)
    ]
    assert sha256_of(graphs[0]) == sha256_of(graphs[1])  # pytest would take minutes to tell what differs
    assert after.origin.training == before.origin.training
    assert after.origin.parent_sha256 == read_artifact(fp32_file).sha256
    assert report.artifacts[1].parity.sqnr_db > 15


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"classes": 3}, "tells 3 classes apart, .* has 2"),
        ({"w2": np.full((8, 2), np.nan)}, "the weights 'w2' of .* hold values that are not finite"),
    ],
)
def test_what_does_not_fit_is_refused(
    fields: dict[str, Any], says: str, make_file: MakeFile, image_folder: MakeImages, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=says):
        export_onnx(make_file(**fields), str(image_folder(count=20)), tmp_path / "out", config=CONFIG)
    assert not (tmp_path / "out").exists()


def test_old_operators_are_converted(make_file: MakeFile, image_folder: MakeImages, tmp_path: Path) -> None:
    report = export_onnx(make_file(opset=11), str(image_folder(count=20)), tmp_path / "out", config=CONFIG)
    assert len(report.artifacts) == 2


def test_the_command_line(
    make_file: MakeFile,
    image_folder: MakeImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    file, data = str(make_file()), str(image_folder(count=20))
    options = ["--data", data, "--calibration", "minmax", "--allow-slower", "--allow-drop"]
    assert run(["quantize", file, *options]) == 0
    assert "exports/theirs/model.int8.onnx: top-1" in capsys.readouterr().out
    assert run(["quantize", "exports/theirs/model.int8.onnx", *options]) == 2
    assert "is int8; give its fp32 file" in capsys.readouterr().err
    assert run(["quantize", file, *options, "--mean", "0.5,1"]) == 2
    assert "--mean takes three numbers between commas, or one, found '0.5,1'" in capsys.readouterr().err
    (tmp_path / "x.onnx").write_text("no model")
    assert run(["quantize", "x.onnx", *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert run(["quantize", "missing.onnx", *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1
