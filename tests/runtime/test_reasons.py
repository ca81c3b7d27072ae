"""What libraries say is shortened to its reason: real refusals of ONNX Runtime, by its C library and its binding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from qdeploy.core.reasons import onnxruntime_reason, tensorrt_reason
from qdeploy.runtime.engines.onnxruntime_binding import FAILURES, open_binding
from qdeploy.runtime.engines.onnxruntime_library import Model
from qdeploy.runtime.engines.onnxruntime_options import OnnxRuntimeError

NOISE = re.compile(
    r"::|\.(?:cc|h|cpp)\b|\[ONNXRuntimeError\]|\d : [A-Z_]+ :|std::|const |tensor\(|\n| was false|\*guarantees"
)
"""What no user can do anything with."""


def graph(
    *nodes: NodeProto, opset: int = 17, ir: int = 9, kind: int = TensorProto.FLOAT, **weights: NDArray[np.generic]
) -> bytes:
    """Make a graph from ``x`` [any, 3, 8, 8] to ``y``."""
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, [None, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("my.ops", 1)]
    return bytes(helper.make_model(made, opset_imports=opsets, ir_version=ir).SerializeToString())


def node(kind: str, *inputs: str, domain: str = "", **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs, ["y"], "place", domain=domain, **attributes)


REFUSED: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "a format too new": (graph(node("Relu", "x"), ir=99), ("Unsupported model IR version: 99", "max")),
    "operators too new": (graph(node("Relu", "x"), opset=99), ("opset 99 of ai.onnx is newer than",)),
    "an unknown operator": (graph(node("Foo", "x")), ("node 'place' (Foo): No Op registered for Foo",)),
    "an unknown domain": (graph(node("Foo", "x", domain="my.ops")), ("my.ops:Foo",)),
    "too few inputs": (graph(node("Conv", "x")), ("node 'place' (Conv): has input size 1",)),
    "an unknown attribute": (
        graph(node("Relu", "x", alpha=1.0)),
        ("node 'place' (Relu): Unrecognized attribute: alpha",),
    ),
    "two types": (graph(node("Add", "x", "c"), c=np.zeros(1, np.int64)), ("Add", "float", "int64", "place")),
    "a type without kernel": (
        graph(node("Sqrt", "x"), kind=TensorProto.STRING),
        ("node 'place' (Sqrt): it does not take string, the type of 'x'",),
    ),
    "no such tensor": (graph(node("Add", "x", "nothing")), ("'nothing'",)),
    "an axis out of range": (graph(node("Softmax", "x", axis=7)), ("node 'place' (Softmax): 'axis' must be in", "7")),
    "a matrix of another size": (
        graph(helper.make_node("Flatten", ["x"], ["f"]), node("MatMul", "f", "c"), c=np.zeros((5, 5), np.float32)),
        ("node 'place' (MatMul): Incompatible dimensions",),
    ),
    "a scale below zero": (
        graph(node("Resize", "x", "", "c", mode="linear"), c=np.array([-1, 1, 1, 1], np.float32)),
        ("Scale value should be greater than 0",),
    ),
    "no graph": (b"\x08\x01no graph", ("protobuf parsing failed",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_of_onnx_runtime_is_its_reason(case: str) -> None:
    data, words = REFUSED[case]
    for name, opened in (("library", lambda: Model(data, 1, "float")), ("binding", lambda: open_binding(data))):
        with pytest.raises(OnnxRuntimeError) as caught:
            opened()
        _require_short(str(caught.value), words, name)
        assert caught.value.__cause__ is not None  # the whole text, for --traceback


FAILS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "a shape that does not hold it": (
        graph(node("Reshape", "x", "c"), c=np.array([7, 13])),
        ("node 'place' (Reshape): The input tensor cannot be reshaped", "{2,3,8,8}", "{7,13}"),
    ),
    "an index out of range": (
        graph(node("Gather", "x", "c", axis=1), c=np.array([9])),
        ("node 'place' (Gather): indices element out of data bounds, idx=9",),
    ),
    "sizes that do not match": (
        graph(
            helper.make_node("Shape", ["x"], ["s"], start=0, end=1),
            helper.make_node("Concat", ["s", "c"], ["t"], axis=0),
            helper.make_node("ConstantOfShape", ["t"], ["z"]),
            node("Concat", "x", "z", axis=0),
            c=np.array([3, 8, 5]),
        ),
        ("node 'place' (Concat): Non concat axis dimensions must match: Axis 3",),
    ),
}


@pytest.mark.parametrize("case", FAILS)
def test_a_run_that_fails_is_its_reason(case: str) -> None:
    data, words = FAILS[case]
    session = open_binding(data, optimize="none")
    with pytest.raises(FAILURES) as caught:
        session.run(None, {"x": np.zeros((2, 3, 8, 8), np.float32)})
    assert NOISE.search(str(caught.value))
    _require_short(onnxruntime_reason(str(caught.value)), words, case)


def _require_short(text: str, words: Sequence[str], where: str) -> None:
    assert not NOISE.search(text), (where, text)
    assert all(word in text for word in words), (where, text)
    assert len(text) < 160, (where, text)


SIGNATURES = (
    "onnxruntime::Model::Model(onnx::ModelProto&&, const std::function<void(int)>&)",
    "virtual onnxruntime::common::Status onnxruntime::Slice::Compute(onnxruntime::OpKernelContext*) const",
    "onnxruntime::UpsampleBase::UpsampleBase(const K&) [with K = onnxruntime::OpKernelInfo]",
    "onnxruntime::utils::F(const std::vector<int>&)::<lambda(size_t)>::operator()(size_t) const",
    "void onnxruntime::{anonymous}::Check(std::map<std::__cxx11::basic_string<char>, int>, bool)",
    "ValidateScales",
    "onnxruntime::Model::Model",
)


@pytest.mark.parametrize("signature", SIGNATURES)
@pytest.mark.parametrize(
    "place", ["/onnxruntime_src/onnxruntime/core/graph/model.cc:182", r"D:\a\_work\1\s\onnxruntime\core\f.h:7", "f.h:7"]
)
@pytest.mark.parametrize("reason", ["Unsupported model IR version: 99", "the size (3) must be positive, found (0)"])
def test_the_source_of_onnx_runtime_is_left_out(signature: str, place: str, reason: str) -> None:
    assert onnxruntime_reason(f"[ONNXRuntimeError] : 1 : FAIL : {place} {signature} {reason}\n") == reason


def test_what_is_a_reason_already_stays() -> None:
    for text in (
        "Invalid rank for input: x Got: 2 Expected: 4",
        "No graph was found in the protobuf.",
        "x (a) [b] {c}",
    ):
        assert onnxruntime_reason(text) == text
    assert onnxruntime_reason("") == "it says nothing"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "Invalid Node - mm\nITensor::getDimensions: Error Code 4: API Usage Error (mm: last dimension of input0 = "
            "192 and second to last dimension of input1 = 5 but must match. In validate at /_src/optimizer/api/layers/"
            "matrixMultiplyLayer.cpp:192)\n[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In "
            "catchCudaError at /_src/common/dispatch/checkMacros.cpp:250 (cudaError 35: CUDA driver version is "
            "insufficient for CUDA runtime version))",
            "mm: last dimension of input0 = 192 and second to last dimension of input1 = 5 but must match",
        ),
        (
            "Assertion failed: (axis >= 0 && axis <= nbDims): Axis must be in the range [0, nbDims (4)]. Provided axis "
            "is: 7",
            "Axis must be in the range [0, nbDims (4)]. Provided axis is: 7",
        ),
        (
            "ModelImporter.cpp:151: ERROR: x:992 In function importInput:\n[8] Assertion failed: convertDtype("
            'onnxDtype.elem_type(), &trtDtype) && "Failed to convert ONNX date type to TensorRT data type."',
            "Failed to convert ONNX date type to TensorRT data type.",
        ),
        (
            'creator && "Plugin not found, are the plugin name, version, and namespace correct?"',
            "Plugin not found, are the plugin name, version, and namespace correct?",
        ),
        ("Invalid Node - conv", "Invalid Node - conv"),
        ("", "it says nothing"),
    ],
)
def test_a_refusal_of_tensorrt_is_its_reason(text: str, reason: str) -> None:
    assert tensorrt_reason(text) == reason
