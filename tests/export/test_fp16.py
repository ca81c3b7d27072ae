from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from qdeploy.bench import sample_images
from qdeploy.core.artifact import SHIPPED
from qdeploy.core.errors import InputError
from qdeploy.core.metrics import agreement, sqnr_db
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.export.graph.fp16 import to_fp16
from qdeploy.export.sources.onnx_file import onnx_source
from tests.foreign import foreign_graphs
from tests.foreign.build import SIZE, Foreign, pixels

FLOAT = TensorProto.FLOAT
OTHERS = (
    *("If with layers", "If in If", "If with a layer's weight", "If around the image", "Scan", "loop, our names 0"),
    *("function: branch", "MultiHeadAttention", "FusedMatMul, A", "operator Celu"),
    "operator MeanVarianceNormalization",
)
"""Graphs of the corpus that hold graphs, operators of ONNX Runtime's own, or operators without fp16."""


@pytest.fixture(scope="module")
def shipped() -> onnx.ModelProto:
    return onnx.load(str(SHIPPED / "model.fp32.onnx"))


def logits(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"image": images})[0])


def test_a_trained_model_keeps_its_answers_at_half_the_size(shipped: onnx.ModelProto) -> None:
    before = shipped.SerializeToString()
    half = to_fp16(shipped)
    assert shipped.SerializeToString() == before
    assert half.ByteSize() < 0.55 * shipped.ByteSize()
    images = sample_images(Preprocessing())[:100]
    expected, found = logits(shipped, images), logits(half, images)
    assert sqnr_db(expected, found) >= 50
    assert agreement(expected, found) == 1.0


def test_inputs_and_outputs_stay_and_sums_are_float32(shipped: onnx.ModelProto) -> None:
    half = to_fp16(shipped)
    ends = {v.name: v.type.tensor_type.elem_type for v in (*half.graph.input, *half.graph.output)}
    assert ends == {"image": TensorProto.UINT8, "logits": FLOAT, "probabilities": FLOAT}
    weights = {i.name: i.data_type for i in half.graph.initializer}
    kinds = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(half).graph.value_info}
    seen = set()
    for node in half.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul", "Gelu"):
            assert {weights.get(i, kinds.get(i)) for i in node.input} == {TensorProto.FLOAT16}, node.name
        if node.op_type in ("Softmax", "ReduceMean"):
            assert kinds.get(node.input[0], ends.get(node.input[0])) == FLOAT, node.name
        seen.add(node.op_type)
    assert {"Conv", "Gemm", "Softmax", "ReduceMean"} <= seen


def small(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Give a graph from ``x`` to ``y`` and ``z``."""
    values = [helper.make_tensor_value_info(n, FLOAT, [2, 4]) for n in ("x", "y", "z")]
    initializers = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_what_both_types_read_exists_in_both_and_once() -> None:
    w = np.linspace(0.5, 2.0, 4, dtype=np.float32)
    model = small(
        [
            helper.make_node("LayerNormalization", ["x", "w"], ["n"], axis=-1),
            helper.make_node("LayerNormalization", ["n", "w"], ["m"], axis=-1),
            helper.make_node("Mul", ["m", "w"], ["y"]),
            helper.make_node("Add", ["y", "n"], ["s"]),
            helper.make_node("Softmax", ["y"], ["t"]),
            helper.make_node("Add", ["s", "t"], ["z"]),
        ],
        {"w": w},
    )
    half = to_fp16(model)
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    expected = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    found = ort.InferenceSession(half.SerializeToString()).run(None, {"x": x})
    for a, b in zip(expected, found, strict=True):
        assert b.dtype == np.float32
        assert np.allclose(a, b, atol=5e-3)
    assert sorted((i.name, i.data_type) for i in half.graph.initializer) == [("w", 10), ("w_fp32", 1)]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (
            small([helper.make_node("Mul", ["x", "w"], [o]) for o in "yz"], {"w": np.full(4, 7e4, np.float32)}),
            "'w' hol",
        ),
        (onnx.load(str(SHIPPED / "model.int8.onnx")), "fp16 is made from the fp32 graph"),
    ],
    ids=["range", "quantized"],
)
def test_what_cannot_be_converted_is_refused(model: onnx.ModelProto, says: str) -> None:
    with pytest.raises(InputError, match=says):
        to_fp16(model)


def test_a_minus_infinity_that_masks_stays_one() -> None:
    mask = np.array([0, -np.inf, 0, 0], np.float32)
    model = small([helper.make_node("Add", ["x", "m"], [o]) for o in "yz"], {"m": mask})
    found = ort.InferenceSession(to_fp16(model).SerializeToString()).run(None, {"x": np.ones((2, 4), np.float32)})
    assert np.isneginf(found[0][:, 1]).all()


@pytest.fixture(scope="module")
def corpus() -> dict[str, Foreign]:
    return {g.name: g for g in foreign_graphs()}


@pytest.mark.parametrize("name", OTHERS)
def test_what_fp16_has_no_form_for_stays_float32_inside_the_graph(
    name: str, corpus: dict[str, Foreign], tmp_path: Path
) -> None:
    model = onnx_source(corpus[name].write(tmp_path))[0].graph
    half = to_fp16(model)
    assert any(i.data_type == TensorProto.FLOAT16 for i in half.graph.initializer)
    images = pixels(size=SIZE)
    assert sqnr_db(logits(model, images), logits(half, images)) >= 45


def test_a_graph_whose_layers_are_all_inside_another_is_refused(corpus: dict[str, Foreign], tmp_path: Path) -> None:
    model = onnx_source(corpus["a bias for each row"].write(tmp_path))[0].graph
    with pytest.raises(InputError, match="all layers of the model are inside If, Loop or Scan, which fp16 leaves"):
        to_fp16(model)
