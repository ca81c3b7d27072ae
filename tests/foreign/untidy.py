"""What ONNX Runtime takes and onnx's own checker does not: order, repeats; and what is seldom written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.foreign.build import CLASSES, Foreign, Net, body, info, tensor


def _reversed() -> onnx.ModelProto:
    """Nodes written from the answer to the image."""
    net = Net(1)
    net.head(net.node("Relu", net.conv(net.stem(), (8, 8), kernel=1)))
    model = net.model()
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    return model


def _repeated(layer: int, same: bool) -> onnx.ModelProto:
    """A weight that is there twice."""
    net = Net(2)
    net.head(net.node("Relu", net.conv(net.stem(), (8, 8), kernel=1)))
    model = net.model()
    weights = list(model.graph.initializer)
    old = weights[layer]
    other = old if same else tensor(np.full(tuple(old.dims), 0.25), old.name)
    del model.graph.initializer[:]
    model.graph.initializer.extend([*weights[:layer], other, *weights[layer:]])
    return model


def _weight_as_answer() -> onnx.ModelProto:
    net = Net(3)
    net.head(net.stem())
    model = net.model()
    weight = model.graph.initializer[0]
    model.graph.output.append(info(weight.name, *weight.dims))
    return model


def _resized(place: str, order: tuple[int, ...], mode: str) -> onnx.ModelProto:
    """Images that are resized along two axes only."""
    net = Net(4, opset=18)
    values = {2: 1.25, 3: 1.5} if place == "scales" else {2: 15, 3: 18}
    by_axis = [values[axis % 4] for axis in order]
    given = ["", net.constant(by_axis)] if place == "scales" else ["", "", net.integers(*map(int, by_axis))]
    net.image = net.node("Resize", "x", *given, axes=list(order), mode=mode)
    stem = net.stem()
    net.image = "x"
    net.head(stem)
    return net.model()


def _padded(order: tuple[int, ...]) -> onnx.ModelProto:
    """Images that are padded along two axes only."""
    net = Net(5, opset=18)
    pads = {2: (1, 2), 3: (0, 3)}
    amounts = [pads[axis % 4][end] for end in (0, 1) for axis in order]
    net.image = net.node("Pad", "x", net.integers(*amounts), net.constant(0.0), net.integers(*order))
    stem = net.stem()
    net.image = "x"
    net.head(stem)
    return net.model()


def _other_rank(kind: str, shape: tuple[int, ...], axes: tuple[int, int]) -> onnx.ModelProto:
    """Tokens or volumes, and no images, that are padded or resized along the same two axes."""
    net = Net(12, opset=18)
    table = net.node("Reshape", net.stem(), net.integers(*shape))
    if kind == "Pad":
        made = net.node("Pad", table, net.integers(2, 0, 2, 2), net.constant(0.5), net.integers(*axes))
    else:
        made = net.node("Resize", table, "", net.constant([2.0, 1.5]), axes=list(axes), mode="nearest")
    wide = net.node("Reshape", made, net.integers(0, 4, -1, 1))
    net.node("Gemm", net.pooled(wide), net.weight(4, CLASSES, scale=1.0), net.bias(), end="y")
    return net.model()


def _group_norm(groups: int) -> onnx.ModelProto:
    net = Net(6, opset=21, ir=10)
    scale, bias = net.constant(net.rng.normal(1, 0.1, 8)), net.constant(net.rng.normal(0, 0.1, 8))
    net.head(net.node("GroupNormalization", net.stem(), scale, bias, num_groups=groups))
    return net.model()


def _training_batch_norm() -> onnx.ModelProto:
    net = Net(7)
    ones, zeros = net.constant(np.ones(8)), net.constant(np.zeros(8))
    seen = net.conv("x", (3, 8), strides=[2, 2])
    outputs = ["normed", "mean", "variance"]
    net.node("BatchNormalization", seen, ones, zeros, zeros, ones, outputs=outputs, training_mode=1)
    net.head(net.node("Relu", "normed"))
    return net.model()


def _mixed(kind: str) -> onnx.ModelProto:
    """Answers that depend on the other images of a batch, or whose first axis is not the batch."""
    net = Net(8)
    if kind == "softmax":
        net.node("Softmax", net.head(net.stem(), end="raw"), end="y", axis=0)
        return net.model()
    if kind == "transposed":
        net.node("Transpose", net.head(net.stem(), end="raw"), end="y", perm=[1, 0])
        return net.model(shape=[CLASSES, "N"])
    net.image = net.node("Sub", "x", net.node("ReduceMean", "x", keepdims=1))
    stem = net.stem()
    net.image = "x"
    net.head(stem)
    return net.model()


def _always_the_same(*values: float, kind: str = "Identity") -> onnx.ModelProto:
    net = Net(9)
    count = net.node("Gather", net.node("Shape", "x"), net.integers(0))
    shape = net.node("Concat", count, net.integers(CLASSES), axis=0)
    net.node(kind, net.node("Expand", net.constant([values]), shape), end="y")
    return net.model()


def _circle() -> onnx.ModelProto:
    net = Net(10)
    net.head(net.node("Add", net.stem(), "later"))
    net.node("Mul", "add5", net.constant(0.5), end="later")
    model = net.model(check=False)
    add = next(n for n in model.graph.node if n.op_type == "Add")
    next(n for n in model.graph.node if n.op_type == "Mul").input[0] = add.output[0]
    return model


def _typed(kind: int) -> onnx.ModelProto:
    net = Net(11)
    net.image = net.node("Cast", "x", to=TensorProto.FLOAT)
    stem = net.stem()
    net.image = "x"
    net.head(stem)
    model = net.model()
    model.graph.input[0].type.tensor_type.elem_type = kind
    return model


def _plain() -> Net:
    net = Net(11)
    net.head(net.stem())
    return net


def _damaged(change: Callable[[TensorProto], None], inside: bool) -> onnx.ModelProto:
    """A constant whose data, type or shape is damaged: a weight, or one that nothing reads."""
    model = _plain().model()
    if inside:
        node = helper.make_node("Constant", [], ["unread"], value=tensor(np.ones((2, 4))))
        model.graph.node.insert(0, node)
        change(model.graph.node[0].attribute[0].t)
    else:
        change(model.graph.initializer[0])
    return model


def _cut(found: TensorProto) -> None:
    found.raw_data = found.raw_data[:-4]


def _cut_in_a_value(found: TensorProto) -> None:
    found.raw_data = found.raw_data[:-3]


def _too_few(found: TensorProto) -> None:
    found.ClearField("raw_data")
    found.float_data.extend([1.0, 2.0])


def _wide(found: TensorProto) -> None:
    found.dims[0] = 2**62


def _no_type(found: TensorProto) -> None:
    found.data_type = 0


def _unknown_type(found: TensorProto) -> None:
    found.data_type = 99


def _no_text(found: TensorProto) -> None:
    found.ClearField("raw_data")
    found.data_type = TensorProto.STRING
    found.string_data.extend([b"\xff"] * 8)


def _part(found: TensorProto) -> None:
    found.segment.begin, found.segment.end = 1, 3


DRAWING = ("Dropout", "Bernoulli", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
DAMAGES = (_cut, _cut_in_a_value, _too_few, _wide, _no_type, _unknown_type, _no_text, _part)


def _drawn(kind: str, place: str = "graph") -> onnx.ModelProto:
    """Random numbers, too small to be seen when the file is run twice."""
    net = Net(13)
    stem = net.stem()
    if kind == "Dropout":
        drawn = net.node("Dropout", stem, net.constant(1e-6), net.constant(True, dtype=np.bool_))
    elif kind == "Bernoulli":
        drawn = net.node("Mul", net.node("Bernoulli", net.node("Sigmoid", stem)), net.constant(1e-7))
    else:
        given: dict[str, Any] = {"scale": 1e-6} if "Normal" in kind else {"low": 0.0, "high": 1e-6}
        given |= {} if kind.endswith("Like") else {"shape": [1, 8, 5, 5]}
        drawn = net.node(kind, *([stem] if kind.endswith("Like") else []), **given)
    if place == "unused":
        net.head(stem)
        return net.model()
    if place == "branch":
        node = net.nodes.pop()
        yes = body([node], [], [info(drawn, None, 8, 5, 5)])
        no = body([helper.make_node("Neg", [stem], ["e"])], [], [info("e", None, 8, 5, 5)])
        sure = net.node("Greater", net.node("ReduceMax", stem, keepdims=0), net.constant(-1.0))
        drawn = net.node("If", sure, then_branch=yes, else_branch=no)
    net.head(net.node("Add", stem, drawn))
    return net.model()


def _never_dropped(ratio: str) -> onnx.ModelProto:
    """A Dropout in training mode that drops nothing, as torch writes one of ``p=0.0`` in training mode."""
    net = Net(13)
    net.node("Constant", end="never", **({"value": tensor(0.0)} if ratio == "tensor" else {"value_float": 0.0}))
    yes = net.constant(True, dtype=np.bool_)
    net.head(net.node("Dropout", net.stem(), "never", yes))
    return net.model()


def _nodeless(output: str) -> onnx.ModelProto:
    """A graph that holds no node, whose output is the image, a weight or nothing."""
    model = _plain().model()
    del model.graph.node[:]
    model.graph.output[0].name = output
    return model


def _outputless(*outputs: str) -> onnx.ModelProto:
    """A graph that gives nothing, or only what it does not compute."""
    model = _plain().model()
    del model.graph.output[:]
    model.graph.output.extend(info(name, "N", CLASSES) for name in outputs)
    return model


def _unnamed() -> onnx.ModelProto:
    model = _plain().model()
    model.graph.name = ""
    return model


def _own_function(domain: str, name: str, calls: str) -> onnx.ModelProto:
    """A function that calls an operator, or itself."""
    net = Net(2)
    net.domains = {domain: 1} if domain else {}
    net.head(net.node(name, net.stem(), domain=domain))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)][: 2 if domain else 1]
    node = helper.make_node(calls, ["a"], ["b"], domain=domain if calls == name else "")
    net.functions.append(helper.make_function(domain, name, ["a"], ["b"], [node], opsets))
    return net.model(check=False)


TAKEN: dict[str, Callable[[], onnx.ModelProto]] = {
    "nodes from last to first": _reversed,
    **{f"weight {i} twice": partial(_repeated, i, same=True) for i in (0, 1, 4)},
    "a weight among the answers": _weight_as_answer,
    **{
        f"resized by {place} along {list(order)}, {mode}": partial(_resized, place, order, mode)
        for place in ("sizes", "scales")
        for order, mode in (((2, 3), "cubic"), ((3, 2), "linear"), ((-2, -1), "nearest"))
    },
    **{f"padded along {list(order)}": partial(_padded, order) for order in ((2, 3), (3, 2), (-1, -2))},
    **{
        f"{kind} of {len(shape)} axes along {list(axes)}": partial(_other_rank, kind, shape, axes)
        for kind in ("Pad", "Resize")
        for shape, axes in (((0, 8, 25), (-2, -1)), ((0, 2, 4, 5, 5), (2, 3)), ((0, 2, 4, 5, 5), (-2, -1)))
    },
    **{f"GroupNormalization of {groups}": partial(_group_norm, groups) for groups in (1, 2, 8)},
    "a graph without a name": _unnamed,
    **{f"Dropout of nothing, {r}": partial(_never_dropped, r) for r in ("tensor", "number")},
    "random numbers that nobody reads": partial(_drawn, "RandomNormalLike", "unused"),
}
REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "BatchNormalization in training": (_training_batch_norm, "is in training mode; export it in evaluation mode"),
    **{f"batch mixed: {k}": (partial(_mixed, k), "first axis is not the batch") for k in ("softmax", "transposed", "")},
    "always the same answer": (partial(_always_the_same, 1, 2, 3), "answers every image the same: 1, 2, 3"),
    "always the same answer below 0": (partial(_always_the_same, -1, 2, -3), "answers every image the same: -1, 2, -3"),
    "always the same probabilities": (
        partial(_always_the_same, -1, 2, -3, kind="Softmax"),
        "answers every image the same: -1, 2, -3",
    ),
    **{f"weight {i} twice, others": (partial(_repeated, i, same=False), "is there twice, with") for i in (0, 1)},
    **{
        f"a damaged {'constant' if inside else 'weight'}: {change.__name__[1:]}": (
            partial(_damaged, change, inside),
            "cannot be read: .*; the file is damaged",
        )
        for inside in (False, True)
        for change in DAMAGES
    },
    **{f"drawn by {kind}": (partial(_drawn, kind), f"each time: {kind} '.*' draws random numbers") for kind in DRAWING},
    "drawn in a branch": (partial(_drawn, "RandomUniformLike", "branch"), "RandomUniformLike '.*' draws random"),
    **{f"no nodes, output {name}": (partial(_nodeless, name), "graph without nodes") for name in ("x", "w1", "y")},
    "no outputs": (_outputless, "must have an output that its graph computes, found none"),
    **{f"output {name} only": (partial(_outputless, name), f"computes, found '{name}'") for name in ("x", "w3")},
    "a function that calls itself": (partial(_own_function, "my", "F", "F"), "functions of .* cannot be written out"),
    **{
        f"a function called {name}": (partial(_own_function, "", name, "Neg"), f"is called {name}, as an operator of")
        for name in ("Relu", "Abs", "HardSwish")
    },
    "nodes in a circle": (_circle, "reads what is made of its own output"),
    **{
        f"image of {TensorProto.DataType.Name(kind)}": (partial(_typed, kind), "uint8, float16, float32 or float64")
        for kind in (TensorProto.INT64, TensorProto.INT32, TensorProto.UINT16, TensorProto.BFLOAT16)
    },
}


def untidy_graphs() -> Iterator[Foreign]:
    """Yield graphs that other tools write, against the checker's rules or beside what is usual."""
    for name, make in TAKEN.items():
        yield Foreign(name=name, kind="legal", model=make(), least_db=20.0)
    for name, (make, says) in REFUSED.items():
        yield Foreign(name=name, kind="refused", model=make(), expected="refused", says=says)
