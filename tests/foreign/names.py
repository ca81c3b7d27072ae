"""Names: whatever tensors, nodes, constants and functions are called, also as ours are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.foreign.build import Foreign, Net, body, info, tensor

OURS = (
    *("image", "logits", "probabilities", "qd_float", "qd_nchw", "qd_mean", "qd_centred", "qd_scale", "image_scale"),
    *("logits_quantized", "logits_float", "logits_scale", "logits_dequantized", "model/Conv", "a:0", "a:0_scale"),
)
STRANGE = (
    "a b",
    "größe",
    "x/y/z",
    "0",
    "-",
    "%5",
    "x:0",
    "{x}",
    "x\\y",
    "'x'",
    '"',
    "\t",
    "a" * 300,
    "онкс",
    "图像",
    "\x1b[31m",
)
ENDINGS = ("_quantized", "_scale", "_zero_point", "_dequantized", "_float", "_gate", "/Q", "/DQ", "_row", ":0")


def _plain(seed: int = 0) -> Net:
    net = Net(seed)
    net.head(net.conv(net.stem(), (8, 8), kernel=1))
    return net


def _with_if(seed: int = 0) -> Net:
    net = Net(seed)
    stem = net.stem()
    inner = net.conv(stem, (8, 8), kernel=1)
    sure = net.node("Greater", net.node("ReduceMax", stem, keepdims=0), net.constant(-1.0))
    yes = body([helper.make_node("Sigmoid", [inner], ["t"])], [], [info("t", None, 8, 5, 5)])
    no = body([helper.make_node("Neg", [inner], ["e"])], [], [info("e", None, 8, 5, 5)])
    net.head(net.node("If", sure, then_branch=yes, else_branch=no))
    return net


def _with_loop(seed: int = 0) -> Net:
    """Relu(Conv) three times, by a Loop whose body reads constants outside and has names of its own."""
    net = Net(seed)
    stem, weight = net.stem(), net.weight(8, 8, 1, 1)
    inside = body(
        [
            helper.make_node("Conv", ["state", weight], ["c_in"]),
            helper.make_node("Relu", ["c_in"], ["next"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        [info("i", kind=TensorProto.INT64), info("go", kind=TensorProto.BOOL), info("state", None, 8, 5, 5)],
        [info("on", kind=TensorProto.BOOL), info("next", None, 8, 5, 5)],
    )
    net.head(net.node("Loop", net.constant(3, dtype=np.int64), net.constant(True, dtype=np.bool_), stem, body=inside))
    return net


def _with_function(seed: int = 0) -> Net:
    net = Net(seed)
    net.functions.append(
        helper.make_function(
            "own",
            "Block",
            ["a", "w"],
            ["b"],
            [helper.make_node("Conv", ["a", "w"], ["c"]), helper.make_node("Relu", ["c"], ["b"])],
            [helper.make_opsetid("", net.opset)],
        )
    )
    net.domains["own"] = 1
    first = net.node("Block", net.stem(), net.weight(8, 8, 1, 1), domain="own")
    net.head(net.node("Block", first, net.weight(8, 8, 1, 1), domain="own"))
    return net


NETS = {"plain": _plain, "if": _with_if, "loop": _with_loop, "function": _with_function}


def renamed(model: onnx.ModelProto, names: dict[str, str]) -> onnx.ModelProto:
    """Rename tensors, also inside; functions keep theirs."""

    def visit(graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
            value.name = names.get(value.name, value.name)
        for node in graph.node:
            node.input[:] = [names.get(n, n) for n in node.input]
            node.output[:] = [names.get(n, n) for n in node.output]
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    visit(attribute.g)

    visit(model.graph)
    return model


def _tensors(graph: onnx.GraphProto) -> list[str]:
    names = [graph.input[0].name, *(i.name for i in graph.initializer)]
    for node in graph.node:
        names += node.output
        for attribute in node.attribute:
            if attribute.HasField("g"):
                names += [v.name for v in attribute.g.input] + _tensors_inside(attribute.g)
    return list(dict.fromkeys(names))


def _tensors_inside(graph: onnx.GraphProto) -> list[str]:
    return [name for node in graph.node for name in node.output]


def _any_names(net: str, pool: tuple[str, ...], seed: int) -> onnx.ModelProto:
    model = NETS[net](seed).model()
    tensors = _tensors(model.graph)
    rng = np.random.default_rng(seed)
    wanted = [str(n) for n in rng.permutation(pool)][: len(tensors)]
    chosen = rng.permutation(tensors)[: len(wanted)]
    return renamed(model, dict(zip(map(str, chosen), wanted, strict=True)))


def _derived(net: str, ending: str, seed: int) -> onnx.ModelProto:
    """Call some tensors as others with an ending of ours."""
    model = NETS[net](seed).model()
    tensors = _tensors(model.graph)
    rng = np.random.default_rng(seed)
    half = [str(t) for t in rng.permutation(tensors)]
    pairs = zip(half[::2], half[1::2], strict=False)
    return renamed(model, {other: f"{one}{ending}" for one, other in pairs})


def _node_names(net: str, name: str, seed: int) -> onnx.ModelProto:
    model = NETS[net](seed).model()
    for node in model.graph.node:
        node.name = name
    return model


def name_graphs() -> Iterator[Foreign]:
    """Yield graphs with names of all sorts."""
    for i, net in enumerate(NETS):
        for seed in range(2):
            yield Foreign(name=f"{net}, our names {seed}", kind="names", model=_any_names(net, OURS, 10 * i + seed))
        yield Foreign(name=f"{net}, strange names", kind="names", model=_any_names(net, STRANGE, i))
        for ending in dict.fromkeys((*ENDINGS[i::4], ENDINGS[0])):
            yield Foreign(name=f"{net}, names with {ending}", kind="names", model=_derived(net, ending, i))
        for name in ("", "model/Conv", "logits/DQ", "x"):
            yield Foreign(name=f"{net}, nodes called '{name}'", kind="names", model=_node_names(net, name, i))
    for name in ("image", "logits", "probabilities"):
        net2 = _plain(3)
        net2.image = name
        for node in net2.nodes:
            node.input[:] = [name if n == "x" else n for n in node.input]
        yield Foreign(name=f"input '{name}'", kind="names", model=net2.model())
        net2 = Net(4)
        net2.head(net2.stem(), end=name)
        yield Foreign(name=f"output '{name}'", kind="names", model=net2.model(end=name))
    yield Foreign(name="dimensions called batch", kind="names", model=_dimensions())
    yield Foreign(name="two branches with the same names", kind="names", model=_same_inside())


def _dimensions() -> onnx.ModelProto:
    net = _plain(5)
    model = net.model()
    model.graph.value_info.append(info(net.nodes[1].output[0], "N", "batch", "batch", 5))
    return model


def _same_inside() -> onnx.ModelProto:
    """Two Ifs whose branches call their tensors and constants alike."""
    net = Net(6)
    last = net.stem()
    for factor in (2.0, 0.5):
        sure = net.node("Greater", net.node("ReduceMax", last, keepdims=0), net.constant(-1.0))
        yes = body([helper.make_node("Mul", [last, "k"], ["t"])], [], [info("t", None, 8, 5, 5)], [tensor(factor, "k")])
        no = body([helper.make_node("Neg", [last], ["t"])], [], [info("t", None, 8, 5, 5)])
        last = net.node("If", sure, then_branch=yes, else_branch=no)
    net.head(last)
    return net.model()
