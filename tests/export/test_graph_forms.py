"""What brings a graph into the form that an export knows: Gemms, free names, and answers that are no numbers."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from qdeploy.core.errors import InputError
from qdeploy.data.catalog import load_dataset
from qdeploy.export import ExportConfig
from qdeploy.export.graph.gemms import normalise_gemms
from qdeploy.export.graph.walk import FreeNames
from qdeploy.export.pipeline import export_source
from qdeploy.export.sources.onnx_file import onnx_source
from tests.conftest import SHORT, MakeImages
from tests.foreign.build import Net

ROWS, INPUTS, OUTPUTS = 3, 4, 3
SHAPES: tuple[tuple[int, ...] | None, ...] = (None, (), (1,), (3,), (1, 1), (1, 3), (3, 1), (3, 3))
GEMMS = list(product(SHAPES, (0, 1), (0, 1), (1.0, 0.5), (1.0, 2.0, 0.0)))


@pytest.mark.parametrize(("shape", "a", "b", "alpha", "beta"), GEMMS)
def test_a_normalised_gemm_gives_the_same(
    shape: tuple[int, ...] | None, a: int, b: int, alpha: float, beta: float
) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 1, (OUTPUTS, INPUTS) if b else (INPUTS, OUTPUTS)).astype(np.float32)
    constants = [numpy_helper.from_array(weight, "w")]
    if shape is not None:
        constants.append(numpy_helper.from_array(np.asarray(rng.normal(0, 1, shape), np.float32), "c"))
    names = ["x", *(c.name for c in constants)]
    gemm = helper.make_node("Gemm", names, ["y"], "fc", alpha=alpha, beta=beta, transA=a, transB=b)
    twice = helper.make_node("Gemm", ["x", "w"], ["z"], "other", transA=a, transB=b)  # reads the same weight
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [INPUTS, ROWS] if a else [ROWS, INPUTS])
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [ROWS, OUTPUTS]) for n in "yz"]
    model = helper.make_model(
        helper.make_graph([gemm, twice], "net", [x], outputs, constants),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    image = rng.normal(0, 1, (INPUTS, ROWS) if a else (ROWS, INPUTS)).astype(np.float32)
    before = ReferenceEvaluator(model).run(None, {"x": image})
    normalise_gemms(model.graph)
    onnx.checker.check_model(model)
    for old, new in zip(before, ReferenceEvaluator(model).run(None, {"x": image}), strict=True):
        assert np.allclose(old, new, rtol=1e-5, atol=1e-6)
    kept = {i.name: tuple(i.dims) for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Gemm":
            assert {helper.get_attribute_value(n) for n in node.attribute if n.name in ("alpha", "beta")} <= {1.0}
            assert [kept[n] for n in node.input[2:]] in ([], [(OUTPUTS,)])


def test_free_names_differ_from_all_names_also_inside() -> None:
    inner = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["inside"], "inner")], "g", [], [helper.make_tensor_value_info("inside", 1, [])]
    )
    node = helper.make_node("If", ["c"], ["y"], "outer", then_branch=inner, else_branch=inner)
    names = FreeNames(helper.make_graph([node], "g", [helper.make_tensor_value_info("c", 9, [])], []))
    taken = ["c", "x", "y", "inside", "inner", "outer"]
    assert [names(name) for name in taken] == [f"{name}_2" for name in taken]
    assert [names("new"), names("new"), names("x")] == ["new", "new_2", "x_3"]


def broken_by_black() -> onnx.ModelProto:
    """Return a net that takes the root of a negative number for a black image."""
    net = Net(1)
    brightest = net.node("ReduceMax", "x", axes=[1, 2, 3], keepdims=1)
    root = net.node("Sqrt", net.node("Sub", brightest, net.constant(-1.7)), end="root")
    net.head(net.node("Mul", net.stem(), root))
    return net.model()


@pytest.mark.parametrize(("split", "says"), [("train", "calibration"), ("val", "validation"), ("test", "test")])
def test_an_answer_that_is_not_finite_names_the_image_and_the_tensor(
    split: str, says: str, image_folder: MakeImages, tmp_path: Path
) -> None:
    file = tmp_path / "theirs.onnx"
    onnx.save(broken_by_black(), str(file))
    source, rules = onnx_source(file)
    dataset = load_dataset(str(image_folder(classes=("a", "b", "c"), count=12)), rules)
    images = dataset.splits[split]
    pixels = np.array(images.pixels)
    pixels[1] = 0
    splits: dict[str, Any] = {**dataset.splits, split: replace(images, pixels=pixels)}
    config = ExportConfig(int8=True, search=SHORT, calibration="minmax", allow_drop=True, allow_slower=True)
    text = rf"answer to {says} image \d+ \(hash {images.hashes[1]}\) is not finite: tensor 'root', made by Sqrt"
    with pytest.raises(InputError, match=text):
        export_source(source, lambda: replace(dataset, splits=splits), config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
