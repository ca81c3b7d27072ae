"""The entrance of a graph: the same numbers from fewer and cheaper operators."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qdeploy.export.graph.entrance import streamline_entrance

RNG = np.random.default_rng(0)
WEIGHTS = ", ".join(f"{v:.4f}" for v in RNG.normal(size=2 * 3 * 3 * 3))
HEAD = f"""
<ir_version: 9, opset_import: ["" : 20]>
net (uint8[batch, 8, 8, 3] image) => (float[batch, c, h, w] out)
<float[1, 3, 1, 1] mean = {{120.5, 110.25, 100.0}}, float[1, 3, 1, 1] scale = {{0.01, 0.02, 0.03}},
 float[2, 3, 3, 3] weight = {{{WEIGHTS}}}>
"""
NORMALISED = """
    f = Cast <to = 1> (image)
    t = Transpose <perm = [0, 3, 1, 2]> (f)
    s = Sub (t, mean)
    x = Mul (s, scale)
"""
PADDED = "Conv <pads = [1, 1, 1, 1]> (x, weight)"


def both(body: str) -> tuple[onnx.ModelProto, np.ndarray, np.ndarray]:
    model = onnx.parser.parse_model(HEAD + "{" + body + "}")
    images = RNG.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    before = run(model, images)
    streamline_entrance(model)
    onnx.checker.check_model(model, full_check=True)
    return model, before, run(model, images)


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": images})[0])


def operators(model: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]


def test_the_means_come_before_the_transposition_and_the_scale_goes_into_the_weights() -> None:
    model, before, after = both(NORMALISED + f"out = {PADDED}")
    assert operators(model) == ["Cast", "Sub", "Transpose", "Conv"]
    assert {i.name: list(i.dims) for i in model.graph.initializer} == {"mean_row": [1, 1, 8, 3], "weight": [2, 3, 3, 3]}
    assert np.allclose(before, after, atol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        f"c = {PADDED}\n r = ReduceMean <keepdims = 1> (x)\n out = Add (c, r)",
        f"a = {PADDED}\n q = Relu (weight)\n b = Conv <pads = [1, 1, 1, 1]> (x, q)\n out = Add (a, b)",
    ],
)
def test_a_scale_that_others_need_stays(body: str) -> None:
    model, before, after = both(NORMALISED + body)
    assert operators(model)[:4] == ["Cast", "Sub", "Mul", "Transpose"]
    assert np.allclose(before, after, atol=1e-5)


def test_an_image_that_is_only_centred_keeps_its_weights() -> None:
    model, before, after = both(NORMALISED.replace("x = Mul (s, scale)", "x = Relu (s)") + f"out = {PADDED}")
    assert operators(model) == ["Cast", "Sub", "Transpose", "Relu", "Conv"]
    assert np.array_equal(before, after)


@pytest.mark.parametrize(
    "body",
    [
        "f = Cast <to = 1> (image)\n out = Transpose <perm = [0, 3, 1, 2]> (f)",
        "f = Cast <to = 1> (image)\n t = Transpose <perm = [0, 2, 1, 3]> (f)\n s = Abs (t)\n out = Relu (s)",
    ],
)
def test_any_other_graph_is_left_as_it_is(body: str) -> None:
    model, before, after = both(body)
    assert operators(model) == operators(onnx.parser.parse_model(HEAD + "{" + body + "}"))
    assert np.array_equal(before, after)
