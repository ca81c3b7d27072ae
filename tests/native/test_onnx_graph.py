from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from qdeploy.core.artifact import SHIPPED
from qdeploy.core.errors import ArtifactError
from qdeploy.native.onnx_graph import read_graph


def test_it_reads_what_the_onnx_library_reads() -> None:
    data = (SHIPPED / "model.int8.onnx").read_bytes()
    graph, reference = read_graph(data), onnx.load_from_string(data).graph
    assert (graph.inputs, graph.outputs) == (["image"], ["logits", "probabilities"])
    assert set(graph.constants) == {i.name for i in reference.initializer}
    for tensor in reference.initializer:
        assert np.array_equal(graph.constants[tensor.name], numpy_helper.to_array(tensor))
        assert graph.constants[tensor.name].dtype == numpy_helper.to_array(tensor).dtype
    for found, node in zip(graph.nodes, reference.node, strict=True):
        assert (found.kind, found.inputs, found.outputs) == (node.op_type, tuple(node.input), tuple(node.output))
        assert found.attributes == {a.name: helper.get_attribute_value(a) for a in node.attribute}


@pytest.mark.parametrize("kind", ["raw", "fields"])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "int8", "int32", "int64", "float64"])
def test_constants_are_read_as_bytes_and_as_fields(kind: str, dtype: str) -> None:
    values = np.array([[-3, 2], [100, 0]]).clip(0 if dtype == "uint8" else -3).astype(dtype)
    number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    if dtype == "float64" and kind == "fields":
        pytest.skip("double_data is not used by any exporter that we know")
    tensor = (
        numpy_helper.from_array(values, "c")
        if kind == "raw"
        else helper.make_tensor("c", number, values.shape, values.reshape(-1).tolist())
    )
    node = helper.make_node("Conv", ["c"], ["y"], pads=[1, -1], alpha=0.5, group=-2, auto_pad="SAME", value=tensor)
    graph = read_graph(helper.make_model(helper.make_graph([node], "g", [], [], [tensor])).SerializeToString())
    assert np.array_equal(graph.constants["c"], values)
    attributes = graph.nodes[0].attributes
    assert np.array_equal(attributes.pop("value"), values)
    assert attributes == {"pads": [1, -1], "alpha": 0.5, "group": -2, "auto_pad": b"SAME"}


def test_other_types_and_damage_are_refused() -> None:
    tensor = numpy_helper.from_array(np.zeros(2, np.complex64), "c")
    data = helper.make_model(helper.make_graph([], "g", [], [], [tensor])).SerializeToString()
    with pytest.raises(ArtifactError, match="'c' is of ONNX type 14"):
        read_graph(data)
    for damaged in (b"", data[:10], b"\xff" * 40):
        with pytest.raises((ArtifactError, ValueError)):
            read_graph(damaged)
