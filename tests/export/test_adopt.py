"""``qdeploy adopt``: any layout, type, range, colour order, size and batch gives the file's own answers.

The reference is independent of qdeploy: Pillow cuts and resizes, numpy normalises, plain ONNX Runtime runs the file as
it came, one image at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from qdeploy.checks.evaluate import EvalConfig, evaluate
from qdeploy.checks.verify import Check, verify
from qdeploy.cli.main import run
from qdeploy.core.artifact import read_artifact
from qdeploy.core.errors import EngineError, InputError
from qdeploy.core.files import sha256_of
from qdeploy.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from qdeploy.export import ExportConfig, ForeignConfig, adopt_onnx, export_onnx
from qdeploy.export.sources.labels import labels_from_file
from qdeploy.export.sources.onnx_file import OnnxSource, onnx_source
from qdeploy.runtime.classifier import load
from qdeploy.runtime.engines.onnxruntime_providers import BindingSession
from qdeploy.runtime.engines.onnxruntime_session import OnnxRuntimeSession
from qdeploy.runtime.session import Session
from tests.conftest import SHORT, MakeImages
from tests.foreign.build import Net
from tests.ort_session import plain_session

LABELS = ("ant", "bee", "cat")
make = helper.make_node
TYPES: dict[int, Any] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
    TensorProto.UINT8: np.uint8,
}


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a graph wants its images, and what a user says of it."""

    first: bool = True
    channels: int = 3
    height: int = 16
    width: int = 16
    dtype: int = TensorProto.FLOAT
    batch: str | int = "N"
    free: bool = False
    says: bool = True
    """Whether the axes have sizes or names of their own, or are four of any size."""
    given: ForeignConfig = field(default_factory=ForeignConfig)

    @property
    def shape(self) -> list[Any]:
        if not self.says:
            return [None] * 4
        sides = ["H", "W"] if self.free else [self.height, self.width]
        return [self.batch, self.channels, *sides] if self.first else [self.batch, *sides, self.channels]

    def values(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Images as the graph wants them, by hand."""
        side = max(self.height, self.width)
        rows = []
        for image in pixels:
            square = Image.fromarray(image)
            left, top = (side - self.width) // 2, (side - self.height) // 2
            cut = square.crop((left, top, left + self.width, top + self.height))
            rows.append(np.asarray(cut.convert("L"))[..., None] if self.channels == 1 else np.asarray(cut))
        values = np.stack(rows).astype(np.float64)
        if self.dtype != TensorProto.UINT8:
            wide = self.given.range == "0-255"
            plain = wide or self.channels == 1
            mean = np.asarray(self.given.mean or ((0,) * 3 if plain else IMAGENET_MEAN))[: self.channels]
            std = np.asarray(self.given.std or ((1,) * 3 if plain else IMAGENET_STD))[: self.channels]
            values = ((values if wide else values / 255) - mean) / std
        if self.given.colours == "bgr":
            values = values[..., ::-1]
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2) if self.first else values, TYPES[self.dtype])


def saved(path: Path, form: Form, *, reshape: bool = False, file: str = "theirs.onnx", scale: float = 1.0) -> Path:
    """Write a small classifier of that form."""
    rng = np.random.default_rng(1)
    channels, last = form.channels, "x"
    nodes = []
    if form.dtype != TensorProto.FLOAT:
        nodes.append(make("Cast", [last], ["xf"], to=TensorProto.FLOAT))
        last = "xf"
    if not form.first:
        nodes.append(make("Transpose", [last], ["xt"], perm=[0, 3, 1, 2]))
        last = "xt"
    nodes += [
        make("Conv", [last, "w1"], ["c"], kernel_shape=[3, 3], strides=[2, 2]),
        make("Relu", ["c"], ["r"]),
        make("GlobalAveragePool", ["r"], ["p"]),
        make("Reshape", ["p", "flat"], ["f"]) if reshape else make("Flatten", ["p"], ["f"]),
        make("Gemm", ["f", "w2", "b2"], ["y"]),
    ]
    tensors = {
        "w1": (rng.normal(0, 0.3, (8, channels, 3, 3)) * scale).astype(np.float32),
        "w2": rng.normal(0, 1, (8, 3)).astype(np.float32),
        "b2": rng.normal(0, 0.1, 3).astype(np.float32),
    }
    if reshape:
        tensors["flat"] = np.asarray([form.batch, 8])
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", form.dtype, form.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [form.batch, 3])],
        [numpy_helper.from_array(v, k) for k, v in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path / file))
    return path / file


def theirs(file: Path, values: NDArray[Any]) -> NDArray[np.float64]:
    """What a file gives for images, in the only batch that it takes."""
    session = plain_session(file.read_bytes())
    size = onnx.load(str(file)).graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    rows = [session.run(None, {"x": np.repeat(values[i : i + 1], size, 0)})[0][:1] for i in range(len(values))]
    return np.concatenate(rows).astype(np.float64)


IMAGES = np.random.default_rng(3).integers(0, 256, (7, 16, 16, 3), np.uint8)
HALF = (0.5, 0.5, 0.5)
CAFFE = ForeignConfig(range="0-255", mean=(123.68, 116.779, 103.939), colours="bgr")
FORMS: dict[str, Form] = {
    "NCHW": Form(),
    "NHWC": Form(first=False),
    "0-255": Form(given=ForeignConfig(range="0-255")),
    "0-255 with mean and std": Form(
        first=False, given=ForeignConfig(range="0-255", mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))
    ),
    "-1 to 1": Form(given=ForeignConfig(mean=HALF, std=HALF)),
    "0-1": Form(given=ForeignConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))),
    "BGR": Form(given=ForeignConfig(colours="bgr")),
    "Caffe": Form(given=CAFFE),
    "BGR, NHWC": Form(first=False, given=ForeignConfig(colours="bgr")),
    "grey": Form(channels=1),
    "grey, NHWC, 0-255": Form(channels=1, first=False, given=ForeignConfig(range="0-255")),
    "grey with mean and std": Form(channels=1, given=ForeignConfig(mean=HALF, std=HALF)),
    "uint8": Form(dtype=TensorProto.UINT8),
    "uint8, NHWC": Form(dtype=TensorProto.UINT8, first=False),
    "uint8, BGR": Form(dtype=TensorProto.UINT8, given=ForeignConfig(colours="bgr")),
    "uint8, grey": Form(dtype=TensorProto.UINT8, channels=1),
    "float16": Form(dtype=TensorProto.FLOAT16),
    "float16, NHWC, BGR": Form(dtype=TensorProto.FLOAT16, first=False, given=ForeignConfig(colours="bgr")),
    "float64": Form(dtype=TensorProto.DOUBLE),
    "low": Form(height=12),
    "narrow, NHWC": Form(width=11, first=False),
    "low, grey, uint8": Form(height=12, channels=1, dtype=TensorProto.UINT8),
    "any size": Form(free=True, given=ForeignConfig(size=16)),
    "four axes of any size": Form(says=False, given=ForeignConfig(size=16)),
    "four axes of any size, NHWC": Form(says=False, first=False, given=ForeignConfig(size=16)),
    "four axes of any size, grey": Form(says=False, channels=1, given=ForeignConfig(size=16)),
    "four axes of any size, uint8, NHWC": Form(
        says=False, first=False, dtype=TensorProto.UINT8, given=ForeignConfig(size=16)
    ),
    "batch 1": Form(batch=1),
    "batch 4": Form(batch=4),
    "batch -1": Form(batch=-1),
    "batch 0": Form(batch=0),
}


def kept(given: ForeignConfig) -> ForeignConfig:
    """The same with labels."""
    return ForeignConfig(**{**vars(given), "labels": LABELS})


@pytest.mark.parametrize("name", FORMS)
def test_any_input_gives_the_files_own_answers(name: str, tmp_path: Path) -> None:
    form = FORMS[name]
    scale = 1 / 255 if form.given.range == "0-255" or form.dtype == TensorProto.UINT8 else 1.0
    file = saved(tmp_path, form, scale=scale)
    report = adopt_onnx(file, tmp_path / "out", foreign=kept(form.given))
    if form.batch in (0, -1):  # which ONNX Runtime takes by the letter
        saved(tmp_path, Form(), scale=scale)
    classifier = load(Path(report.artifacts[0].path))
    assert classifier.card.labels == LABELS
    assert classifier.card.preprocessing.size == 16
    expected = theirs(file, form.values(IMAGES))
    for size in (7, 3, 1):
        logits, _ = classifier.session.infer(IMAGES[:size])
        assert np.abs(logits - expected[:size]).max() < (2e-3 if form.dtype == TensorProto.FLOAT16 else 1e-4)
    assert expected.std(0).min() > 1e-4


@pytest.mark.parametrize(
    "name",
    [
        "grey",
        "BGR",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("uint8", "low", "float64", "batch 1", "uint8, grey")),
    ],
)
def test_any_input_can_be_quantized(name: str, image_folder: MakeImages, tmp_path: Path) -> None:
    form = FORMS[name]
    file = saved(tmp_path, form, scale=1 / 255 if form.dtype == TensorProto.UINT8 else 1.0)
    config = ExportConfig(int8=True, search=SHORT, calibration="minmax", allow_drop=True, allow_slower=True)
    data = str(image_folder(LABELS, count=10))
    report = export_onnx(file, data, tmp_path / "out", foreign=form.given, config=config)
    assert [a.precision for a in report.artifacts] == ["fp32", "int8"]
    assert report.artifacts[0].parity.max_abs < 1e-4
    assert report.artifacts[1].parity.sqnr_db > 20


@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_inside_the_graph_is_made_free(batch: int, tmp_path: Path) -> None:
    form = Form(batch=batch)
    file = saved(tmp_path, form, reshape=True)
    report = adopt_onnx(file, tmp_path / "out", foreign=kept(form.given))
    logits, _ = load(Path(report.artifacts[0].path)).session.infer(IMAGES)
    assert np.abs(logits - theirs(file, form.values(IMAGES))).max() < 1e-4


TOKENS = [
    make("Reshape", ["x", "rows"], ["t"]),
    make("Concat", ["token", "t"], ["all"], axis=1),
    make("MatMul", ["all", "w"], ["m"]),
    make("Relu", ["m"], ["r"]),
    make("ReduceMean", ["r"], ["y"], axes=[1], keepdims=0),
]
WINDOWS = [
    make("Reshape", ["x", "cut"], ["a"]),
    make("Transpose", ["a"], ["b"], perm=[0, 2, 4, 1, 3, 5]),
    make("Reshape", ["b", "windows"], ["c"]),
    make("Softmax", ["c"], ["d"], axis=1),
    make("MatMul", ["d", "w"], ["e"]),
    make("Reshape", ["e", "joined"], ["f"]),
    make("ReduceMax", ["f"], ["y"], axes=[1], keepdims=0),
]
BATCH_SECOND = [
    make("Reshape", ["x", "rows"], ["t"]),
    make("Transpose", ["t"], ["s"], perm=[1, 0, 2]),
    make("Reshape", ["s", "heads"], ["h"]),
    make("Softmax", ["h"], ["q"], axis=1),
    make("Reshape", ["q", "whole"], ["v"]),
    make("ReduceMean", ["v"], ["n"], axes=[0], keepdims=0),
    make("MatMul", ["n", "w"], ["y"]),
]


@pytest.mark.parametrize(
    ("nodes", "alone"), [(TOKENS, False), (WINDOWS, False), (BATCH_SECOND, True)], ids=["token", "windows", "attention"]
)
def test_what_attention_does_with_a_batch_of_one_is_undone(nodes: list[Any], alone: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "rows": np.asarray([1, 48, 16]),
        "cut": np.asarray([1, 3, 2, 8, 2, 8]),
        "windows": np.asarray([4, 12, 16]),
        "joined": np.asarray([1, 48, 3]),
        "heads": np.asarray([48, 4, 4]),
        "whole": np.asarray([48, 1, 16]),
        "token": rng.normal(0, 1, (1, 1, 16)).astype(np.float32),
        "w": rng.normal(0, 1, (16, 3)).astype(np.float32),
    }
    tensors = {k: v for k, v in tensors.items() if any(k in n.input for n in nodes)}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(v, k) for k, v in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "t.onnx")
    notes: list[str] = []
    report = adopt_onnx(tmp_path / "t.onnx", tmp_path / "out", foreign=ForeignConfig(labels=LABELS), note=notes.append)
    assert any("takes one image at a time" in n for n in notes) == alone
    assert not any("test images" in n for n in notes)  # they are generated, and their labels nobody's
    logits, _ = load(Path(report.artifacts[0].path)).session.infer(IMAGES)
    assert np.abs(logits - theirs(tmp_path / "t.onnx", Form().values(IMAGES))).max() < 1e-4


def any_channels(path: Path) -> Path:
    """Write a graph that adds up whatever it gets."""
    nodes = [
        make("ReduceMean", ["x"], ["m"], axes=[1, 2, 3], keepdims=0),
        make("Reshape", ["m", "column"], ["c"]),
        make("MatMul", ["c", "w"], ["y"]),
    ]
    tensors = {"column": np.asarray([-1, 1]), "w": np.ones((1, 3), np.float32)}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * 4)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(v, k) for k, v in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path / "sum.onnx")
    return path / "sum.onnx"


def across_images(tmp_path: Path) -> Path:
    """A graph that answers the images of a batch by their mean."""
    file = saved(tmp_path, Form())
    model = onnx.load(str(file))
    model.graph.node[-1].output[0] = "z"
    model.graph.node.append(make("ReduceMean", ["z"], ["m"], axes=[0], keepdims=1))
    model.graph.node.append(make("Sub", ["z", "m"], ["y"]))
    onnx.save(model, str(file))
    return file


def by_chance(tmp_path: Path) -> Path:
    """A graph that answers otherwise each time."""
    file = saved(tmp_path, Form())
    model = onnx.load(str(file))
    model.graph.node[-1].output[0] = "z"
    model.graph.node.append(make("RandomNormalLike", ["z"], ["e"]))
    model.graph.node.append(make("Add", ["z", "e"], ["y"]))
    onnx.save(model, str(file))
    return file


def by_chance_beside(tmp_path: Path) -> Path:
    """The same with an answer that is always the same, as the second output."""
    file = by_chance(tmp_path)
    model = onnx.load(str(file))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 3]))
    onnx.save(model, str(file))
    return file


@pytest.mark.parametrize(
    ("form", "given", "says"),
    [
        (by_chance_beside, {}, "draws random numbers; export it .* or give `output=z`, which depends on none"),
        (
            by_chance,
            {},
            r"answers the same image differently each time: RandomNormalLike '.*' draws random numbers; export it in",
        ),
        (lambda p: saved(p, Form(free=True)), {}, "takes images of any size; say with `size` which is right"),
        (lambda p: saved(p, Form(says=False)), {}, "takes images of any size; say with `size` which is right"),
        (
            any_channels,
            {"size": 16},
            r"says nothing of its channels, .* found \[any, 3, 16, 16\] and \[any, 16, 16, 3\]",
        ),
        (lambda p: saved(p, Form(says=False, channels=4)), {"size": 16}, "says nothing of its channels, .* found none"),
        (lambda p: saved(p, Form()), {"size": 32}, "takes images of 16 x 16 only, found `size=32`"),
        (lambda p: saved(p, Form(channels=4)), {}, r"of 3 or 1 channels, found \[any, 4, 16, 16\]"),
        (lambda p: saved(p, Form(dtype=TensorProto.UINT8)), {"mean": HALF}, "takes uint8 pixels as they are: `mean`"),
        (lambda p: saved(p, Form(channels=1)), {"mean": IMAGENET_MEAN}, "one channel: `mean` must be one number"),
        (lambda p: saved(p, Form(channels=1)), {"colours": "bgr"}, "takes one channel: `colours=bgr` means nothing"),
        (across_images, {}, "answers batches not as single images .*mixes the images of a batch"),
        (lambda p: saved(p, Form()), {"labels": ("a", "b")}, "tells 3 classes apart, `labels` names 2"),
        (lambda p: saved(p, Form()), {"labels": None}, "nothing says what the 3 classes of .* give `labels`"),
    ],
)
def test_what_cannot_be_adopted_is_refused_in_one_line(
    form: Callable[[Path], Path], given: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=says) as refused:
        adopt_onnx(form(tmp_path), tmp_path / "out", foreign=ForeignConfig(**{"labels": LABELS, **given}))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"mean": (123.675, 116.28, 103.53)}, "`mean` is given for pixels from 0 to 1, found 123.675, 116.28, 103.53"),
        ({"std": (58.4, 57.1, 57.4)}, "`std` is given for pixels from 0 to 1, found 58.4, 57.1, 57.4; divide"),
        ({"range": "0-255", "mean": IMAGENET_MEAN, "std": IMAGENET_STD}, "are given for pixels from 0 to 255"),
        ({"mean": (float("nan"),) * 3}, "`mean` must be three finite numbers, found nan"),
        ({"std": (1.0, float("inf"), 1.0)}, "`std` must be three finite numbers, found 1.0, inf"),
        ({"std": (0.2, 0.0, 0.2)}, "`std` must be positive, found 0.2, 0.0, 0.2"),
        ({"range": "0-256"}, r"`range` must be one of 0-1, 0-255, found '0-256' \(did you mean '0-255'"),
        ({"colours": "grb"}, "`colours` must be one of rgb, bgr"),
        ({"size": 0}, "`size` must be between 1 and 4096, found 0"),
    ],
)
def test_slips_of_the_normalisation_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ForeignConfig(**given)


def test_the_artifact_is_complete_and_claims_no_accuracy(tmp_path: Path) -> None:
    file = saved(tmp_path, Form())
    adopt_onnx(file, tmp_path / "out", foreign=ForeignConfig(labels=LABELS))
    card = read_artifact(tmp_path / "out" / "model.fp32.onnx").card
    assert card.accuracy is None
    assert card.origin.parent_sha256 == sha256_of(file.read_bytes())
    assert len(card.goldens.rows) == 4
    assert verify(tmp_path / "out").ok
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["artifacts"][0]["accuracy"] is None
    assert "those of theirs.onnx" in report["verdict"]
    assert "not known" in (tmp_path / "out" / "report.html").read_text()


def toned(folder: Path, names: tuple[str, ...], tones: dict[str, NDArray[np.int64]], count: int = 12) -> Path:
    """Write a folder whose classes are told apart by their mean colour."""
    rng = np.random.default_rng(4)
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(rng.normal(tones[name], 30, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def by_tone(path: Path, order: list[NDArray[np.int64]], metadata: dict[str, str] | None = None) -> Path:
    """Write a graph that answers with the nearest mean colour: its classes are in the order of the given tones."""
    centres = np.stack(order) / 255
    nodes = [
        make("GlobalAveragePool", ["x"], ["p"]),
        make("Flatten", ["p"], ["f"]),
        make("Gemm", ["f", "w", "b"], ["y"]),
    ]
    tensors = {"w": (40 * centres.T).astype(np.float32), "b": (-20 * (centres**2).sum(1)).astype(np.float32)}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", len(order)])],
        [numpy_helper.from_array(v, k) for k, v in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, str(path / "tones.onnx"))
    return path / "tones.onnx"


PLAIN = ForeignConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
TONES = dict(zip(map(str, range(12)), np.random.default_rng(8).integers(20, 235, (12, 3)), strict=True))
NUMBERS = tuple(TONES)
BY_NUMBER = [TONES[n] for n in NUMBERS]


def adopted(file: Path, data: Path, out: Path, given: ForeignConfig = PLAIN) -> tuple[float, str]:
    """Adopt with data; return the accuracy in the card and the notes."""
    notes: list[str] = []
    adopt_onnx(file, out, data=str(data), foreign=given, note=notes.append)
    accuracy = read_artifact(out / "model.fp32.onnx").card.accuracy
    assert accuracy is not None
    return accuracy.top1, "\n".join(notes)


@pytest.mark.parametrize(
    "metadata",
    [
        {"names": str(dict(enumerate(NUMBERS)))},
        {"names": json.dumps(NUMBERS)},
        {"id2label": json.dumps({str(i): n for i, n in enumerate(NUMBERS)})},
        {"labels": "\n".join(NUMBERS)},
        {"classes": ",".join(NUMBERS)},
        {"names": str({i: f"kind {n}" for i, n in enumerate(NUMBERS)})},
    ],
)
def test_numbers_as_folders_follow_the_files_names(metadata: dict[str, str], tmp_path: Path) -> None:
    data = toned(tmp_path / "data", NUMBERS, TONES)
    top1, notes = adopted(by_tone(tmp_path, BY_NUMBER, metadata), data, tmp_path / "out")
    assert top1 == 100.0
    assert "the labels are those of metadata" in notes
    assert "instead of" not in notes


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.txt", "\n".join(NUMBERS)),
        ("tones.labels.txt", "\n".join(NUMBERS) + "\n\n"),
        ("config.json", json.dumps({"id2label": {str(i): n for i, n in enumerate(NUMBERS)}})),
        ("config.json", json.dumps({"pretrained_cfg": {"label_names": NUMBERS}})),
        ("config.json", json.dumps({"label2id": {}, "id2label": {n: i for i, n in enumerate(NUMBERS)}})),
    ],
)
def test_labels_beside_the_file_are_read(name: str, text: str, tmp_path: Path) -> None:
    data = toned(tmp_path / "data", NUMBERS, TONES)
    (tmp_path / name).write_text(text)
    top1, notes = adopted(by_tone(tmp_path, BY_NUMBER), data, tmp_path / "out")
    assert top1 == 100.0
    assert name in notes


def test_guessed_labels_of_another_number_hide_nothing_and_choose_no_output(tmp_path: Path) -> None:
    file = by_tone(tmp_path, BY_NUMBER[:4], {"signature": json.dumps({"names": ["image", "mask"]})})
    source, _ = onnx_source(file, PLAIN)
    assert source.labels is None
    assert "metadata 'signature' of tones.onnx holds 2 labels and not 4: it is left alone" in source.notes
    (tmp_path / "classes.json").write_text('["image", "mask"]')
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {str(i): n for i, n in enumerate(NAMES[:4])}}))
    source, _ = onnx_source(file, PLAIN)
    assert source.labels is not None
    assert source.labels.labels == NAMES[:4]
    assert any("classes.json holds 2 labels" in n for n in source.notes)
    model = onnx.load(file)
    model.graph.node.append(make("Slice", ["y", "from", "to", "axis"], ["few"]))
    for name, value in (("from", 0), ("to", 2), ("axis", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray([value]), name))
    model.graph.output.append(helper.make_tensor_value_info("few", TensorProto.FLOAT, ["N", 2]))
    onnx.save(model, file)
    with pytest.raises(InputError, match="several outputs that could be scores of classes: 'y' of 4, 'few' of 2"):
        onnx_source(file, PLAIN)
    (tmp_path / "classes.json").unlink()
    (tmp_path / "config.json").unlink()
    source, _ = onnx_source(file, PLAIN)
    assert source.labels is not None
    assert source.labels.labels == ("image", "mask")


def test_numbers_in_the_order_of_text_are_said(tmp_path: Path) -> None:
    data = toned(tmp_path / "data", NUMBERS, TONES)
    top1, notes = adopted(by_tone(tmp_path, BY_NUMBER), data, tmp_path / "out")
    assert top1 < 50
    assert "the folders are numbers and were taken in the order of text (0, 1, 10, 11, ...)" in notes
    assert "with its classes in the order of numbers and not of text accuracy would be 100.0 % instead of" in notes
    in_text = by_tone(tmp_path, [TONES[n] for n in sorted(NUMBERS)])
    top1, notes = adopted(in_text, data, tmp_path / "text")
    assert top1 == 100.0
    assert "instead of" not in notes


@pytest.mark.parametrize(
    ("metadata", "name", "text", "says"),
    [
        (
            {"author": "Ultralytics"},
            "x.json",
            "",
            "is Ultralytics', whose classifiers take plain pixels, .*`mean=0,0,0`",
        ),
        ({}, "config.json", {"pretrained_cfg": {"mean": HALF, "std": HALF}}, "config.json says `mean=0.5,0.5,0.5` and"),
        ({}, "preprocessor_config.json", {"image_mean": HALF, "image_std": HALF}, "says .* `std=0.5,0.5,0.5`, for pix"),
        ({}, "config.json", {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}, None),
        ({}, "config.json", {"mean": "a", "std": [1]}, None),
    ],
)
def test_another_normalisation_beside_the_file_is_said(
    metadata: dict[str, str], name: str, text: Any, says: str | None, tmp_path: Path
) -> None:
    file = by_tone(tmp_path, BY_NUMBER[:3], metadata)
    (tmp_path / name).write_text(json.dumps(text))
    notes: list[str] = []
    adopt_onnx(file, tmp_path / "out", foreign=ForeignConfig(labels=LABELS), note=notes.append)
    assert any("another normalisation is taken" in n for n in notes) == (says is not None)
    assert says is None or re.search(says, " ".join(notes))


NAMES = ("ant", "bee", "cat", "dog", "elk")
NAMED = dict(zip(NAMES, BY_NUMBER, strict=False))


def test_another_order_of_classes_is_said_and_labels_repair_it(tmp_path: Path) -> None:
    data = toned(tmp_path / "data", NAMES, NAMED, count=40)
    order = ["cat", "elk", "ant", "dog", "bee"]
    file = by_tone(tmp_path, [NAMED[n] for n in order], {"val_acc": "0.97"})
    top1, notes = adopted(file, data, tmp_path / "out")
    assert top1 < 50
    assert "with its classes in another order accuracy would be 100.0 % instead of" in notes
    assert "'ant' for 'cat'" in notes
    assert "the file claims 97.0 % (metadata 'val_acc')" in notes
    (tmp_path / "order.json").write_text(json.dumps(order))
    given = ForeignConfig(mean=PLAIN.mean, std=PLAIN.std, labels=tmp_path / "order.json")
    top1, notes = adopted(file, data, tmp_path / "out", given)
    assert top1 == 100.0
    assert "were matched by name" in notes
    assert "instead of" not in notes
    assert "claims" not in notes


def test_of_two_explanations_the_better_one_is_said(tmp_path: Path) -> None:
    """With the labels the wrong way round a wrong normalisation, too, is right more often than none."""
    data = toned(tmp_path / "data", NAMES, NAMED, count=40)
    file = by_tone(tmp_path, [NAMED[n] for n in (*NAMES[1:], NAMES[0])])
    notes = adopted(file, data, tmp_path / "out")[1]
    assert notes.count("accuracy would be") == 1
    assert "with its classes in another order accuracy would be 100.0 % instead of" in notes


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (ForeignConfig(), "with `mean=0` and `std=1` accuracy would be 100.0 % instead of"),
        (ForeignConfig(range="0-255"), "with `mean=0` and `std=1` accuracy would be 100.0 % instead of"),
        (ForeignConfig(mean=PLAIN.mean, std=PLAIN.std, colours="bgr"), "with `colours=rgb` accuracy would be 100.0 %"),
    ],
)
def test_a_better_normalisation_is_said_and_not_taken(given: ForeignConfig, says: str, tmp_path: Path) -> None:
    data = toned(tmp_path / "data", NAMES, NAMED, count=40)
    top1, notes = adopted(by_tone(tmp_path, [NAMED[n] for n in NAMES]), data, tmp_path / "out", given)
    assert says in notes
    assert "nothing was changed" in notes
    assert top1 < 95
    assert "accuracy would be" not in adopted(tmp_path / "tones.onnx", data, tmp_path / "right")[1]


def test_data_of_some_classes_measure_these(tmp_path: Path) -> None:
    file = by_tone(tmp_path, [NAMED[n] for n in NAMES])
    few = toned(tmp_path / "few", ("dog", "bee"), NAMED)
    given = ForeignConfig(mean=PLAIN.mean, std=PLAIN.std, labels=NAMES)
    top1, notes = adopted(file, few, tmp_path / "out", given)
    assert top1 == 100.0
    assert "3 of the file's 5 labels have no images: ant, cat, elk" in notes
    found = evaluate(tmp_path / "out" / "model.fp32.onnx", EvalConfig(data=str(few), split="all"))
    assert found.top1 == 100.0
    assert any("whether it was trained on these images is not known" in n for n in found.notes)


NINES = "9" * 5000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "ant\nbee\nant",
            r"has the class 'ant' \(did you mean 'ant \(2\)' or 'ant \(0\)'\?\); .* names ant \(0\), bee",
        ),
        ("ant\nant (0)\nant", r"holds the label 'ant \(0\)' twice; give each class a label of its own"),
        ("ant\nb\x1b[31mee\ncat", r"no printable text, found 'b\\x1b\[31mee' at place 1"),
        ("ant", "must hold at least 2 labels, one a line or as JSON, found 1"),
        ('{"0": "ant", "2": "bee"}', "mine.txt numbers its labels and has none for 1"),
        ('["ant", "bee",}', "mine.txt begins as JSON and is none; mend it, or write one label a line"),
        ('{"ant": {"index": 0}, "bee": {"index": 1}, "cat": {}}', "must hold at least 2 labels"),
        ("{1e999: 'ant', 2: 'bee', 3: 'cat'}", "mine.txt must hold at least 2 labels, .*, found 0"),
        pytest.param(f"names:\n  {NINES}: ant\n  1: bee\n", "must hold at least 2 labels, .*, found 0", id="digits"),
        pytest.param(f'["ant", 0x{NINES}]', "no label, found a int; give one label a line", id="hexadecimal digits"),
        ('[["n1", "ant", 1], ["n2", "bee", 2]]', r"holds what is no label, found \['n1', 'ant', 1\]"),
        ("ant\nbee\ncow", "has the class 'cat'.*; .* names ant, bee, cow; name the folders so, or give `labels`"),
        ("ant\nbee\ncat\ndog", "tells 3 classes apart, .* names 4"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(text: str, says: str, image_folder: MakeImages, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(text)
    file, data = saved(tmp_path, Form()), str(image_folder(LABELS))
    with pytest.raises(InputError, match=says):
        adopt_onnx(file, tmp_path / "out", data=data, foreign=ForeignConfig(labels=tmp_path / "mine.txt"))


@pytest.mark.parametrize(
    "text",
    [
        "0 cat\r\n1 ant\r\n2 bee\r\n",
        "2: bee\n0: cat\n1: ant\n",
        "1\tcat\n2\tant\n3\tbee",
        '0,"cat"\n1,"ant"\n2,"bee"',
        "\n'cat'\n\n'ant'\n'bee'\n",
        "path: ../data\nnc: 3\nnames:  # in their order\n  0: cat\n  1: ant\n  2: 'bee'\ntrain: images\n",
        "names:\n- cat\n- ant # small\n- bee\nval: images\n",
        "nc: 3\nnames: ['cat', 'ant',\n  'bee']\n",
        "names: {0: cat, 1: ant, 2: bee}",
        '{"0": ["n01", "cat"], "1": ["n02", "ant"], "2": ["n03", "bee"]}',
        '{"info": {}, "categories": [{"id": 7, "name": "ant"}, {"id": 3, "name": "cat"}, {"id": 90, "name": "bee"}]}',
        '{"id2label": {"0": "cat", "1": "ant", "2": "bee"}, "label2id": {}}',
        "{3: 'bee', 2: 'ant', 1: 'cat'}",
    ],
)
def test_labels_are_read_as_other_tools_write_them(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert labels_from_file(tmp_path / "mine.txt").labels == ("cat", "ant", "bee")


def changed(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """Write the small classifier with something else about it."""
    file = saved(path, Form())
    model = onnx.load(file)
    change(model)
    onnx.save(model, file)
    return file


def add_unread_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("size", TensorProto.INT64, [2]))


def answer_with_a_table(model: onnx.ModelProto) -> None:
    """End as scikit-learn's exporter does: with a table from label to probability for each image."""
    model.graph.node.append(make("Softmax", ["y"], ["shares"], axis=1))
    table = make("ZipMap", ["shares"], ["table"], domain="ai.onnx.ml", classlabels_strings=["cat", "ant", "bee"])
    model.graph.node.append(table)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    del model.graph.output[:]
    kind = model.graph.output.add(name="table").type.sequence_type.elem_type.map_type
    kind.key_type, kind.value_type.tensor_type.elem_type = TensorProto.STRING, TensorProto.FLOAT


@pytest.mark.parametrize("change", [add_unread_input, answer_with_a_table])
def test_what_says_nothing_of_the_answer_is_no_obstacle(
    change: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    labels = None if change is answer_with_a_table else ("cat", "ant", "bee")
    given = ForeignConfig(mean=PLAIN.mean, std=PLAIN.std, labels=labels)
    adopt_onnx(changed(tmp_path, change), tmp_path / "out", foreign=given)
    adopted_file = tmp_path / "out" / "model.fp32.onnx"
    assert read_artifact(adopted_file).card.labels == ("cat", "ant", "bee")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    expected = theirs(saved(tmp_path, Form()), (pixels / 255).astype(np.float32).transpose(0, 3, 1, 2))
    found = plain_session(adopted_file.read_bytes()).run(["logits"], {"image": pixels})[0]
    assert np.abs(found - expected).max() < 1e-5


def test_what_onnxruntime_fails_with_is_no_verdict(
    image_folder: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No graph is known that every version opens and then fails with, so the failure is raised by hand."""

    def fail(self: Session, opened: Any, images_BSSC: NDArray[np.uint8]) -> Any:
        raise self.failures[0]("Transpose: out of data bounds")

    def refuse(*given: Any, **named: Any) -> Any:
        raise EngineError("ONNX Runtime has a name of its own here")

    file, data = saved(tmp_path, Form()), str(image_folder(LABELS))
    monkeypatch.setattr(OnnxRuntimeSession, "_infer", fail)
    monkeypatch.setattr(BindingSession, "_infer", fail)
    with pytest.raises(InputError, match="what is made of .* cannot be run: ONNX Runtime .* out of data bounds"):
        export_onnx(file, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(OnnxRuntimeSession, "_infer", refuse)
    monkeypatch.setattr(BindingSession, "_infer", refuse)
    with pytest.raises(EngineError, match="a name of its own"):
        export_onnx(file, data, tmp_path / "out")


def test_folders_may_be_called_as_numbered_lines(image_folder: MakeImages, tmp_path: Path) -> None:
    names = ("0 ant", "1 bee", "2 cat")
    (tmp_path / "mine.txt").write_text("2 cat\n0 ant\n1 bee")
    file, data = saved(tmp_path, Form()), str(image_folder(names))
    adopt_onnx(file, tmp_path / "out", data=data, foreign=ForeignConfig(labels=tmp_path / "mine.txt"))
    assert read_artifact(tmp_path / "out" / "model.fp32.onnx").card.labels == names


@pytest.mark.parametrize("where", ["file", "metadata"])
def test_a_name_of_several_classes_gets_their_numbers(where: str, tmp_path: Path) -> None:
    """ImageNet has two cranes; the second pair here is one name in two forms of Unicode."""
    names = ["crane", "cafe\u0301", "crane", "caf\u00e9", "ant"]
    file = by_tone(tmp_path, [NAMED[n] for n in NAMES])
    given = None
    if where == "file":
        given = tmp_path / "mine.txt"
        given.write_text("\n".join(names))
    else:
        model = onnx.load(file)
        model.metadata_props.add(key="names", value=json.dumps(dict(enumerate(names))))
        onnx.save(model, file)
    notes: list[str] = []
    adopt_onnx(file, tmp_path / "out", foreign=ForeignConfig(labels=given), note=notes.append)
    labels = load(tmp_path / "out" / "model.fp32.onnx").card.labels
    assert labels == ("crane (0)", "caf\u00e9 (1)", "crane (2)", "caf\u00e9 (3)", "ant")
    (said,) = (n for n in notes if n.startswith("the labels are those of"))
    assert said.endswith("; 4 of them are names of several classes and got their number: " + ", ".join(labels[:4]))
    assert verify(tmp_path / "out").ok


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, Form())
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    assert run(["adopt", "theirs.onnx", "--labels", "names.txt", "--mean", "0.5", "--std", "0.5,0.5,0.5"]) == 0
    assert "exports/theirs/model.fp32.onnx: accuracy not known" in capsys.readouterr().out
    assert load(Path("exports/theirs/model.fp32.onnx")).card.preprocessing.mean == (0.5, 0.5, 0.5)
    assert run(["adopt", "theirs.onnx", "--labels", "names.txt", "--mean", "123,116,103"]) == 2
    assert "or say --range 0-255" in capsys.readouterr().err
    assert run(["adopt", "theirs.onnx", "--labels", "nowhere.txt"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    for verb in ("predict", "bench", "eval", "verify", "tune", "inspect"):
        words = ["theirs.onnx"] if verb != "predict" else ["x.png", "--model", "theirs.onnx"]
        assert run([verb, *words]) == 2
        error = capsys.readouterr().err
        assert "has no qdeploy card" in error
        assert "`qdeploy adopt` or `qdeploy quantize`" in error


def test_a_file_that_qdeploy_s_form_does_not_repeat_is_refused_and_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, Form())
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    monkeypatch.setattr(OnnxSource, "rounding", property(lambda _: -1.0))  # so that no difference is small enough
    assert run(["adopt", "theirs.onnx", "--labels", "names.txt"]) == 2
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("qdeploy: "))
    assert "does not answer as the file does: parity failed" in line
    assert "say with --output which" in line
    assert not Path("exports/theirs").exists()


def test_layers_in_bfloat16_are_taken_though_nothing_here_runs_them(tmp_path: Path, capsys: Any) -> None:
    net = Net(3)
    wide = helper.make_tensor("bf", TensorProto.BFLOAT16, [8, 8, 1, 1], net.rng.normal(0, 0.3, 64).tolist())
    net.constants.append(wide)
    narrow = net.node("Cast", net.stem(), to=TensorProto.BFLOAT16)
    net.head(net.node("Cast", net.node("Conv", narrow, "bf"), to=TensorProto.FLOAT))
    file = tmp_path / "theirs.onnx"
    file.write_bytes(net.model().SerializeToString())
    source, _ = onnx_source(file)
    assert any("ONNX Runtime does not run bfloat16 here" in note for note in source.notes)
    assert not any(i.data_type == TensorProto.BFLOAT16 for i in source.graph.graph.initializer)
    assert run(["lint", str(file)]) in (0, 1)
    assert "defect" not in capsys.readouterr().err


def test_a_state_beside_the_answer_is_no_obstacle(tmp_path: Path) -> None:
    net = Net(4)
    answer = net.head(net.stem())
    state = net.node("Unsqueeze", net.pooled(net.nodes[1].output[0]), net.integers(0), end="state")
    model = net.model(end=answer)
    model.graph.output.append(helper.make_tensor_value_info(state, TensorProto.FLOAT, [1, "N", 8]))
    file = tmp_path / "theirs.onnx"
    file.write_bytes(model.SerializeToString())
    assert onnx_source(file)[0].model.num_classes == 3


def test_a_function_may_be_called_as_a_later_operator(tmp_path: Path) -> None:
    net = Net(5)
    body = [helper.make_node("Tanh", ["a"], ["b"])]
    net.functions.append(helper.make_function("", "Gelu", ["a"], ["b"], body, [helper.make_opsetid("", net.opset)]))
    net.head(net.node("Gelu", net.stem()))
    file = tmp_path / "theirs.onnx"
    file.write_bytes(net.model(check=False).SerializeToString())
    assert onnx_source(file)[0].model.num_classes == 3


def test_what_a_file_was_made_from_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ForeignConfig(labels=("ant", "bee", "cat"))
    adopt_onnx(saved(tmp_path, Form()), Path("exports/theirs"), foreign=given)

    def parent() -> Check:
        return next(c for c in verify(Path("exports/theirs")).checks if c.name == "model.fp32.onnx: parent")

    assert (parent().ok, parent().detail) == (True, "made from theirs.onnx, which has this hash")
    assert not any("inf dB" in c.detail for c in verify(Path("exports/theirs")).checks)
    Path("theirs.onnx").unlink()
    assert parent().ok is None
    assert parent().detail.startswith("no file in this folder or below ./exports has the hash of what it was made from")
    assert "run" not in parent().detail
