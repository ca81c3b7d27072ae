"""Legal ONNX that is seldom seen: old and new versions, subgraphs, biases of any shape, empty tensors, sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.foreign.build import CLASSES, Foreign, Net, body, info, tensor
from tests.foreign.operators import COARSE, OLD, OPERATORS

OPSETS = range(7, 27)


def _versions(opset: int, ir: int, inputs: str) -> onnx.ModelProto:
    """Return a net with BatchNormalization, Dropout, Clip, Pad, ReduceMean and Softmax as an opset has them."""
    net = Net(opset, opset=opset, ir=ir)
    x = net.conv("x", (3, 8), strides=[2, 2])
    statistics = [net.constant(net.rng.uniform(0.5, 2, 8)) for _ in range(4)]
    x = net.node("BatchNormalization", x, *statistics)
    bounds = (net.constant(0.0), net.constant(6.0))
    x = net.node("Clip", x, *bounds) if opset >= 11 else net.node("Clip", x, min=0.0, max=6.0)
    pads = [0, 0, 1, 1, 0, 0, 1, 1]
    x = net.node("Pad", x, net.integers(*pads)) if opset >= 11 else net.node("Pad", x, pads=pads)
    x = net.conv(x, (8, 8))
    x = net.node("Dropout", x)
    x = (
        net.node("ReduceMean", x, net.integers(2, 3), keepdims=1)
        if opset >= 18
        else net.node("ReduceMean", x, axes=[2, 3], keepdims=1)
    )
    x = net.node("Squeeze", x, net.integers(2, 3)) if opset >= 13 else net.node("Squeeze", x, axes=[2, 3])
    net.node("Gemm", x, net.weight(8, CLASSES, scale=1.0), net.bias(), end="y")
    model = net.model(check=inputs == "none" and ir > 3)
    every = [i for n, i in enumerate(model.graph.initializer) if inputs == "all" or (inputs == "half" and n % 2)]
    model.graph.input.extend(info(i.name, *i.dims, kind=i.data_type) for i in every)
    onnx.checker.check_model(model)
    return model


def _gemm(shape: tuple[int, ...], **attributes: Any) -> onnx.ModelProto:
    net = Net(len(shape), opset=17)
    weight = net.weight(CLASSES, 8, scale=1.0) if attributes.get("transB") else net.weight(8, CLASSES, scale=1.0)
    net.node("Gemm", net.pooled(net.stem()), weight, net.weight(*shape), end="y", **attributes)
    return net.model()


def _matmul_add(shape: tuple[int, ...], first: bool) -> onnx.ModelProto:
    net = Net(len(shape))
    product = net.node("MatMul", net.pooled(net.stem()), net.weight(8, CLASSES, scale=1.0))
    bias = net.weight(*shape)
    net.node("Add", *((bias, product) if first else (product, bias)), end="y")
    return net.model()


def _column(kind: str) -> onnx.ModelProto:
    """Return a net whose last product is W x^T + b, with b of [K, 1]."""
    net = Net(1)
    pooled, weight, bias = net.pooled(net.stem()), net.weight(CLASSES, 8, scale=1.0), net.weight(CLASSES, 1)
    if kind == "Gemm":
        turned = net.node("Gemm", weight, pooled, bias, transB=1)
    else:
        turned = net.node("Add", net.node("MatMul", weight, net.node("Transpose", pooled, perm=[1, 0])), bias)
    net.node("Transpose", turned, end="y", perm=[1, 0])
    return net.model()


def _rows() -> onnx.ModelProto:
    """Return a net with a Gemm over the rows of one image, each with a bias of its own: it takes one image."""
    net = Net(2)
    tokens = net.node("Reshape", net.stem(), net.integers(8, 25))
    mixed = net.node("Gemm", tokens, net.weight(25, 4), net.weight(8, 4))
    flat = net.node("Reshape", mixed, net.integers(1, 32))
    net.node("Gemm", flat, net.weight(32, CLASSES), net.bias(), end="y")
    return net.model(batch=1)


def _sure(net: Net, x: str) -> str:
    return net.node("Greater", net.node("ReduceMax", x, keepdims=0), net.constant(-1.0))


def _if_with_layer(nested: bool) -> onnx.ModelProto:
    """If, whose branches hold Conv with weights and biases outside, and read what comes before a Relu."""
    net = Net(3)
    before = net.conv("x", (3, 8), strides=[2, 2])
    after = net.node("Relu", before)
    weight, bias = net.weight(8, 8, 1, 1), net.weight(8)
    conv = helper.make_node("Conv", [after, weight, bias], ["t"])
    yes = body([conv], [], [info("t", None, 8, 5, 5)])
    if nested:
        inner = body([helper.make_node("Conv", [after, weight, bias], ["u"])], [], [info("u", None, 8, 5, 5)])
        other = body([helper.make_node("Neg", [before], ["v"])], [], [info("v", None, 8, 5, 5)])
        sure = helper.make_node("Greater", ["limit", "zero"], ["always"])
        choice = helper.make_node("If", ["always"], ["t"], then_branch=inner, else_branch=other)
        yes = body([sure, choice], [], [info("t", None, 8, 5, 5)])
        net.constant(1.0, "limit")
        net.constant(0.0, "zero")
    no = body([helper.make_node("Sub", [after, before], ["e"])], [], [info("e", None, 8, 5, 5)])
    net.head(net.node("If", _sure(net, after), then_branch=yes, else_branch=no))
    return net.model()


def _if_reads_layers_weight() -> onnx.ModelProto:
    """If, that reads the weight and bias of a layer outside: they must survive quantizing."""
    net = Net(4)
    stem = net.stem()
    weight, bias = net.weight(8, 8, 1, 1), net.weight(8)
    product = net.node("Conv", stem, weight, bias)
    yes = body([helper.make_node("Conv", [product, weight, bias], ["t"])], [], [info("t", None, 8, 5, 5)])
    no = body([helper.make_node("Identity", [product], ["e"])], [], [info("e", None, 8, 5, 5)])
    net.head(net.node("If", _sure(net, stem), then_branch=yes, else_branch=no))
    return net.model()


def _if_around_the_image() -> onnx.ModelProto:
    """If, whose branches read the image itself."""
    net = Net(5)
    weight = net.weight(8, 3, 3, 3)
    yes = body([helper.make_node("Conv", ["x", weight], ["t"], strides=[2, 2])], [], [info("t", None, 8, 5, 5)])
    no = body([helper.make_node("Conv", ["x", weight], ["e"], strides=[2, 2])], [], [info("e", None, 8, 5, 5)])
    sure = net.node("Greater", net.node("ReduceMax", "x", keepdims=0), net.constant(0.0))
    net.head(net.node("Relu", net.node("If", sure, then_branch=yes, else_branch=no)))
    return net.model()


def _scan() -> onnx.ModelProto:
    """Scan over the rows of the features, with a MatMul and a bias outside."""
    net = Net(6)
    rows = net.node("Transpose", net.stem(), perm=[2, 0, 3, 1])  # [5, N, 5, 8]
    weight, bias = net.weight(8, 8), net.weight(8)
    inside = body(
        [
            helper.make_node("MatMul", ["row", weight], ["p"]),
            helper.make_node("Add", ["p", bias], ["q"]),
            helper.make_node("Add", ["q", "total"], ["next"]),
            helper.make_node("Relu", ["next"], ["out"]),
        ],
        [info("total", None, 5, 8), info("row", None, 5, 8)],
        [info("next", None, 5, 8), info("out", None, 5, 8)],
    )
    start = net.node("Mul", net.node("Gather", rows, net.constant(0, dtype=np.int64), axis=0), net.constant(0.0))
    net.node("Scan", start, rows, outputs=["last", "every"], body=inside, num_scan_inputs=1)
    mixed = net.node("Transpose", "every", perm=[1, 3, 0, 2])
    net.head(mixed)
    return net.model()


def _constant(form: str) -> onnx.ModelProto:
    """Return a net that scales its features by a Constant node in one of its forms."""
    net = Net(7)
    stem = net.stem()
    if form == "sparse_value":
        values = helper.make_sparse_tensor(tensor([2.0, 0.5], "v"), tensor([1, 5], "i", np.int64), [8])
        flat = net.node("Constant", sparse_value=values)
        factor = net.node("Reshape", net.node("Add", flat, net.constant(1.0)), net.integers(1, 8, 1, 1))
    else:
        given: dict[str, Any] = {
            "value": tensor(np.full((1, 8, 1, 1), 1.5)),
            "value_float": 1.5,
            "value_floats": [1.0, 2.0, 0.5, 1.0, 1.5],
            "value_int": 2,
            "value_ints": [1, 2, 3, 2, 1],
        }
        factor = net.node("Constant", **{form: given[form]})
        if form.startswith("value_int"):
            factor = net.node("Cast", factor, to=TensorProto.FLOAT)
    net.head(net.node("Mul", stem, factor))
    return net.model()


def _sparse_weight() -> onnx.ModelProto:
    net = Net(8)
    pooled = net.pooled(net.stem())
    net.node("Gemm", pooled, "sparse", net.bias(), end="y")
    model = net.model(check=False)
    values = helper.make_sparse_tensor(
        tensor(net.rng.normal(0, 1, 12), "sparse"), tensor(np.arange(0, 24, 2), "places", np.int64), [8, CLASSES]
    )
    model.graph.sparse_initializer.append(values)
    return model


def _empty(form: str) -> onnx.ModelProto:
    """Return a net with a tensor that has no values."""
    net = Net(9)
    stem = net.stem()
    if form == "slice":
        none = net.node("Slice", stem, net.integers(8), net.integers(8), net.integers(1))
    elif form == "split":
        net.node("Split", stem, net.integers(8, 0), outputs=["whole", "none"], axis=1)
        stem, none = "whole", "none"
    elif form == "layers":
        rest = net.node("Slice", stem, net.integers(5), net.integers(9), net.integers(2))  # [N, 8, 0, 5]
        none = net.node("Relu", net.node("Add", rest, net.constant(net.rng.normal(0, 1, (8, 1, 1)))))
        net.head(net.node("Concat", stem, none, axis=2))
        return net.model()
    else:
        none = net.constant(np.zeros((1, 0, 5, 5)))
        none = net.node("Expand", none, net.node("Concat", _count(net, stem), net.integers(0, 5, 5), axis=0))
    net.head(net.node("Concat", stem, none, axis=1))
    return net.model()


def _count(net: Net, x: str) -> str:
    return net.node("Slice", net.node("Shape", x), net.integers(0), net.integers(1))


def _function(form: str) -> onnx.ModelProto:
    """Return a net of local functions: nested, with attributes, with a graph inside, of the same tensor names."""
    net = Net(10)
    opsets = [helper.make_opsetid("", net.opset), helper.make_opsetid("own", 1)]
    net.domains["own"] = 1
    leaky = helper.make_node("LeakyRelu", ["c"], ["b"])
    leaky.attribute.append(onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope"))
    conv = helper.make_node("Conv", ["a", "w"], ["c"])
    inner = helper.make_function("own", "Inner", ["a", "w"], ["b"], [conv, leaky], opsets, attributes=["slope"])
    net.functions.append(inner)
    call: dict[str, Any] = {"domain": "own", "slope": 0.1}
    if form == "nested":
        first = helper.make_node("Inner", ["a", "w"], ["c"], domain="own", slope=0.2)
        second = helper.make_node("Inner", ["c", "w"], ["b"], domain="own", slope=0.3)
        net.functions.append(helper.make_function("own", "Outer", ["a", "w"], ["b"], [first, second], opsets))
        net.head(net.node("Outer", net.stem(), net.weight(8, 8, 1, 1), domain="own"))
    elif form == "branch":
        stem, weight = net.stem(), net.weight(8, 8, 1, 1)
        yes = body([helper.make_node("Inner", [stem, weight], ["t"], **call)], [], [info("t", None, 8, 5, 5)])
        no = body([helper.make_node("Neg", [stem], ["e"])], [], [info("e", None, 8, 5, 5)])
        net.head(net.node("If", _sure(net, stem), then_branch=yes, else_branch=no))
    else:
        net.head(net.node("Inner", net.stem(), net.weight(8, 8, 1, 1), **call))
    return net.model()


def _sequence(form: str) -> onnx.ModelProto:
    net = Net(11)
    stem = net.stem()
    if form == "split":
        parts = net.node("SplitToSequence", stem, net.integers(3, 5), axis=1)
        first, second = (net.node("SequenceAt", parts, net.constant(i, dtype=np.int64)) for i in (0, 1))
        mixed = net.node("Concat", second, first, axis=1)
    elif form == "construct":
        pair = net.node("SequenceConstruct", stem, net.node("Neg", stem))
        mixed = net.node("ConcatFromSequence", pair, axis=1)
        net.head(mixed, channels=16)
        return net.model()
    else:
        opt = net.node("Optional", stem)
        mixed = net.node("OptionalGetElement", opt)
    net.head(net.conv(mixed, (8, 8), kernel=1))
    return net.model()


def _no_layer(form: str) -> onnx.ModelProto:
    net = Net(12)
    if form == "scaled":
        net.node("Mul", net.pooled("x"), net.constant([1.0, 2.0, 3.0]), end="y")
    elif form == "means":
        net.pooled("x")
        net.nodes[-1].output[0] = "y"
    else:
        net.node("Softplus", net.node("Flatten", net.node("GlobalMaxPool", "x")), end="y")
    return net.model()


def _shared(form: str) -> onnx.ModelProto:
    """One constant, read in several ways."""
    net = Net(13)
    stem = net.stem()
    if form == "axes":
        weight = net.weight(8, 8)
        pooled = net.pooled(stem)
        first = net.node("Relu", net.node("MatMul", pooled, weight))
        second = net.node("Gemm", first, weight, transB=1)
        net.node("Gemm", second, net.weight(8, CLASSES), net.bias(), end="y")
        return net.model()
    weight = net.weight(8, 8, 1, 1) if form == "layers" else net.weight(8, 8, 5, 5)
    if form == "layers":
        bias = net.weight(8)
        x = net.node("Relu", net.node("Conv", stem, weight, bias))
        net.head(net.node("Add", net.node("Conv", x, weight, bias), stem))
        return net.model()
    x = net.node("Conv", stem, weight)  # [N, 8, 1, 1]
    summed = net.node("ReduceSum", weight, net.integers(0), keepdims=1) if form == "folded" else ""
    if form == "added":
        eight = net.node("Expand", x, net.integers(1, 8, 5, 5))
        net.head(net.node("Mul", eight, net.constant(net.rng.normal(0, 1, (8, 5, 5)))))
    else:
        net.head(net.node("Add", x, summed))
    return net.model()


def _described() -> onnx.ModelProto:
    """Everything that may be written beside a graph."""
    net = Net(14)
    net.head(net.stem())
    model = net.model()
    model.doc_string = "made by hand"
    model.metadata_props.add(key="names", value="nothing")
    model.opset_import.append(helper.make_opsetid("com.example", 3))
    model.graph.doc_string = "a net"
    note = model.graph.quantization_annotation.add(tensor_name="conv1")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="conv1_scale")
    for node in model.graph.node:
        node.doc_string = "text"
        node.domain = "ai.onnx"
    unused = tensor(np.ones(3), "unused")
    model.graph.initializer.append(unused)
    return model


def _outputs() -> onnx.ModelProto:
    """An output that is read inside as well."""
    net = Net(15)
    net.head(net.stem(), end="y")
    net.node("Softmax", "y", end="unused", axis=1)
    return net.model()


def _external() -> Foreign:
    net = Net(16)
    net.head(net.conv(net.stem(), (8, 8), kernel=1))
    model = net.model()
    data = b""
    for weight in model.graph.initializer:
        raw, start = weight.raw_data, len(data)
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "weights.bin"), ("offset", str(start)), ("length", str(len(raw)))):
            weight.external_data.add(key=key, value=value)
        data += raw
    return Foreign(name="weights in another file", kind="legal", model=model, beside={"weights.bin": data})


FORMS: dict[str, Callable[[], onnx.ModelProto]] = {
    **{f"Gemm, bias {list(s)}": partial(_gemm, s) for s in ((3,), (1, 3), (), (1,), (1, 1))},
    **{f"Gemm, bias {list(s)}, factors": partial(_gemm, s, alpha=0.5, beta=2.0) for s in ((3,), (1, 3), (), (1, 1))},
    "Gemm, transposed, factors": lambda: _gemm((1, 3), transB=1, alpha=1.5, beta=0.0),
    **{f"MatMul, Add {list(s)}": partial(_matmul_add, s, False) for s in ((3,), (1, 3), (), (1,), (1, 1))},
    **{f"Add {list(s)} of a MatMul": partial(_matmul_add, s, True) for s in ((3,), (1, 3), ())},
    "Gemm, bias [K, 1]": lambda: _column("Gemm"),
    "MatMul, Add [K, 1]": lambda: _column("MatMul"),
    "If with layers": lambda: _if_with_layer(nested=False),
    "If in If": lambda: _if_with_layer(nested=True),
    "If with a layer's weight": _if_reads_layers_weight,
    "If around the image": _if_around_the_image,
    "Scan": _scan,
    **{
        f"Constant {f}": partial(_constant, f)
        for f in ("value", "value_float", "value_floats", "value_int", "value_ints", "sparse_value")
    },
    "sparse weight": _sparse_weight,
    **{f"empty tensor: {f}": partial(_empty, f) for f in ("slice", "split", "layers", "constant")},
    **{f"function: {f}": partial(_function, f) for f in ("attribute", "nested", "branch")},
    **{f"sequence: {f}": partial(_sequence, f) for f in ("split", "construct", "optional")},
    **{f"shared: {f}": partial(_shared, f) for f in ("axes", "layers", "folded", "added")},
    "described": _described,
    "an output that is read": _outputs,
}


def _in_16_bits(kind: int, place: str) -> onnx.ModelProto:
    """A graph of float32 weights of which one part is cast to 16 bits and back."""
    net = Net(41)

    def there_and_back(x: str, at: str) -> str:
        return net.node("Cast", net.node("Cast", x, to=kind), to=TensorProto.FLOAT) if at == place else x

    net.image = there_and_back("x", "image")
    stem = there_and_back(net.stem(), "maps")
    net.image = "x"
    net.node("Identity", there_and_back(net.head(stem, end="z"), "logits"), end="y")
    return net.model()


def legal_graphs() -> Iterator[Foreign]:
    """Yield legal graphs of all sorts."""
    for opset in OPSETS:
        yield Foreign(name=f"opset {opset}", kind="legal", model=_versions(opset, 8 if opset < 21 else 10, "none"))
    for ir, opset in ((3, 7), (3, 9), (4, 9), (6, 11), (7, 13), (9, 17), (13, 24)):
        for inputs in ("all", "half") if ir > 3 else ("all",):
            model = _versions(opset, ir, inputs)
            yield Foreign(name=f"IR {ir}, opset {opset}, {inputs} weights among the inputs", kind="legal", model=model)
    for name, make in FORMS.items():
        yield Foreign(name=name, kind="legal", model=make())
    for form in ("scaled", "means", "activation"):
        yield Foreign(name=f"no layer: {form}", kind="legal", model=_no_layer(form), layers=0)
    yield Foreign(name="a bias for each row", kind="legal", model=_rows(), layers=0)
    yield _external()
    for kind, name in ((TensorProto.FLOAT16, "float16"), (TensorProto.BFLOAT16, "bfloat16")):
        for place in ("image", "maps", "logits"):
            model = _in_16_bits(kind, place)
            yield Foreign(name=f"{name} for the {place}", kind="legal", model=model, rounding=0.02)
    for name, make in OPERATORS.items():
        least_db = 15.0 if name in COARSE else 20.0
        yield Foreign(name=f"operator {name}", kind="legal", model=make(), least_db=least_db)
    for name, make in OLD.items():
        yield Foreign(name=f"old {name}", kind="legal", model=make(), least_db=15.0)
