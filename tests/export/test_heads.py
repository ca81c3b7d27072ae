"""Where logits are is found by what a graph computes, whatever its tail: compared with the file as it came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qdeploy.core.errors import InputError
from qdeploy.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from qdeploy.export import ForeignConfig
from qdeploy.export.sources.answers import answers_of
from qdeploy.export.sources.onnx_file import OnnxSource, onnx_source
from tests.ort_session import plain_session

S, K = 12, 4
Node = onnx.NodeProto
Tail = tuple[list[Node], list[Any], int]
"""Nodes from ``raw`` [N, K] to ``y``, the shape of ``y``, its type."""
Tensors = dict[str, NDArray[Any]]
make = helper.make_node
FLOAT, HALF, DOUBLE, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64


def body(classes: int, end: str = "raw") -> tuple[list[Node], Tensors]:
    rng = np.random.default_rng(0)
    nodes = [
        make("Conv", ["x", "w1"], ["c"], kernel_shape=[3, 3], strides=[2, 2]),
        make("Relu", ["c"], ["r"]),
        make("GlobalAveragePool", ["r"], ["p"]),
        make("Flatten", ["p"], ["f"]),
        make("Gemm", ["f", "w2", "b2"], [end]),
    ]
    weights = {
        "w1": rng.normal(0, 0.3, (8, 3, 3, 3)),
        "w2": rng.normal(0, 2, (8, classes)),
        "b2": rng.normal(0, 1, classes),
    }
    return nodes, {k: v.astype(np.float32) for k, v in weights.items()}


def saved(
    path: Path, nodes: list[Node], tensors: Tensors, outputs: dict[str, tuple[int, list[Any]]], batch: str | int = "N"
) -> Path:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", FLOAT, [batch, 3, S, S])],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(v, k) for k, v in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path / "theirs.onnx"))
    return path / "theirs.onnx"


def pictures() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (6, S, S, 3), np.uint8)


def theirs(file: Path, name: str = "y") -> NDArray[np.float64]:
    """What the file as it came gives, one image after the other."""
    values = ((pictures().astype(np.float32) / 255 - IMAGENET_MEAN) / IMAGENET_STD).transpose(0, 3, 1, 2)
    session = plain_session(file.read_bytes())
    rows = [session.run([name], {"x": values[i : i + 1].astype(np.float32)})[0].reshape(-1) for i in range(6)]
    return np.stack(rows).astype(np.float64)


def ours(source: OnnxSource) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    session = plain_session(source.graph.SerializeToString())
    logits, probabilities = session.run(["logits", "probabilities"], {"image": pictures()})
    assert logits.dtype == probabilities.dtype == np.float32
    assert logits.shape == probabilities.shape == (6, source.model.num_classes)
    return logits.astype(np.float64), probabilities.astype(np.float64)


def softmax(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(rows - rows.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def constant(name: str, values: list[int]) -> Node:
    return make("Constant", [], [name], value=numpy_helper.from_array(np.asarray(values, np.int64)))


def by_hand(shifted: bool) -> list[Node]:
    start = [make("ReduceMax", ["raw"], ["m"], axes=[1]), make("Sub", ["raw", "m"], ["d"])] if shifted else []
    return [
        *start,
        make("Exp", ["d" if shifted else "raw"], ["e"]),
        constant("axes", [1]),
        make("ReduceSum", ["e", "axes"], ["s"]),
        make("Div", ["e", "s"], ["y"]),
    ]


SOFT = make("Softmax", ["raw"], ["s"], axis=1)
CUBE = constant("cube", [0, K, 1, 1])
PROBABILITIES: dict[str, Tail] = {
    "softmax": ([make("Softmax", ["raw"], ["y"], axis=-1)], ["N", K], FLOAT),
    "identity": ([SOFT, make("Identity", ["s"], ["y"])], ["N", K], FLOAT),
    "cast": ([SOFT, make("Cast", ["s"], ["y"], to=FLOAT)], ["N", K], FLOAT),
    "double": ([SOFT, make("Cast", ["s"], ["y"], to=DOUBLE)], ["N", K], DOUBLE),
    "half": ([SOFT, make("Cast", ["s"], ["y"], to=HALF)], ["N", K], HALF),
    "flatten": ([SOFT, CUBE, make("Reshape", ["s", "cube"], ["q"]), make("Flatten", ["q"], ["y"])], ["N", K], FLOAT),
    "four axes": ([SOFT, CUBE, make("Reshape", ["s", "cube"], ["y"])], ["N", K, 1, 1], FLOAT),
    "softmax of four axes": (
        [CUBE, make("Reshape", ["raw", "cube"], ["q"]), make("Softmax", ["q"], ["y"], axis=1)],
        ["N", K, 1, 1],
        FLOAT,
    ),
    "squeeze": (
        [SOFT, CUBE, make("Reshape", ["s", "cube"], ["q"]), constant("a", [2, 3]), make("Squeeze", ["q", "a"], ["y"])],
        ["N", K],
        FLOAT,
    ),
    "by hand": (by_hand(shifted=False), ["N", K], FLOAT),
    "by hand, shifted": (by_hand(shifted=True), ["N", K], FLOAT),
    "log and back": ([make("LogSoftmax", ["raw"], ["l"], axis=1), make("Exp", ["l"], ["y"])], ["N", K], FLOAT),
    "clipped": ([SOFT, make("Max", ["s", "least"], ["y"])], ["N", K], FLOAT),
}
LOGITS: dict[str, Tail] = {
    "identity": ([make("Identity", ["raw"], ["y"])], ["N", K], FLOAT),
    "four axes": ([CUBE, make("Reshape", ["raw", "cube"], ["y"])], ["N", K, 1, 1], FLOAT),
    "log softmax": ([make("LogSoftmax", ["raw"], ["y"], axis=1)], ["N", K], FLOAT),
    "double": ([make("Cast", ["raw"], ["y"], to=DOUBLE)], ["N", K], DOUBLE),
    "half": ([make("Cast", ["raw"], ["y"], to=HALF)], ["N", K], HALF),
}


def with_tail(tmp_path: Path, tail: Tail, batch: str | int = "N") -> Path:
    nodes, tensors = body(K)
    more, shape, kind = tail
    return saved(
        tmp_path, [*nodes, *more], {**tensors, "least": np.asarray(1e-30, np.float32)}, {"y": (kind, shape)}, batch
    )


@pytest.mark.parametrize("name", PROBABILITIES)
def test_probabilities_are_taken_as_such(name: str, tmp_path: Path) -> None:
    file = with_tail(tmp_path, PROBABILITIES[name])
    source, _ = onnx_source(file)
    logits, probabilities = ours(source)
    coarse = 1e-3 if name == "half" else 1e-6
    assert np.abs(probabilities - theirs(file)).max() < coarse
    assert np.abs(softmax(logits) - theirs(file)).max() < coarse
    before = {"softmax of four axes": "q", "by hand, shifted": "d", "log and back": "l"}.get(name, "raw")
    assert source.notes[-1] == f"output 'y' holds probabilities; logits are '{before}'"
    assert "Exp" not in {n.op_type for n in source.graph.graph.node}


@pytest.mark.parametrize("name", LOGITS)
def test_logits_are_taken_as_they_are(name: str, tmp_path: Path) -> None:
    file = with_tail(tmp_path, LOGITS[name])
    logits, probabilities = ours(onnx_source(file)[0])
    coarse = 5e-3 if name == "half" else 1e-5  # ours does not round to 16 bits
    assert np.abs(logits - theirs(file)).max() < coarse
    assert np.abs(probabilities - softmax(theirs(file))).max() < coarse


def test_probabilities_without_logits_before_them_are_exact_too(tmp_path: Path) -> None:
    nodes, tensors = body(K)
    squares = [
        make("Mul", ["raw", "raw"], ["q"]),
        make("ReduceSum", ["q", "one"], ["s"]),
        make("Div", ["q", "s"], ["y"]),
    ]
    file = saved(tmp_path, [*nodes, *squares], {**tensors, "one": np.asarray([1])}, {"y": (FLOAT, ["N", K])})
    source, _ = onnx_source(file)
    logits, probabilities = ours(source)
    assert "logits are their logarithm" in source.notes[-1]
    assert np.abs(probabilities - theirs(file)).max() < 1e-6
    assert np.abs(logits - np.log(theirs(file))).max() < 1e-4


def test_rows_of_which_only_some_are_probabilities_are_refused(tmp_path: Path) -> None:
    nodes, tensors = body(K)
    tenths = [
        SOFT,
        make("Mul", ["s", "ten"], ["m"]),
        make("Round", ["m"], ["whole"]),
        make("Div", ["whole", "ten"], ["y"]),
    ]
    tensors = {**tensors, "ten": np.asarray(10, np.float32)}
    file = saved(tmp_path, [*nodes, *tenths], tensors, {"y": (FLOAT, ["N", K])})
    with pytest.raises(InputError, match=r"sum to 1 for \d of 7 images, and not for the others; say with `output`"):
        onnx_source(file)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("after", ["raw", "s"])
def test_numbers_of_classes_lead_to_what_their_argmax_reads(keep: int, after: str, tmp_path: Path) -> None:
    nodes, tensors = body(K)
    largest = make("ArgMax", [after], ["y"], axis=1, keepdims=keep)
    file = saved(tmp_path, [*nodes, SOFT, largest], tensors, {"y": (INT64, ["N", 1] if keep else ["N"])})
    source, _ = onnx_source(file)
    logits, _ = ours(source)
    assert (logits.argmax(1) == theirs(file)[:, 0]).all()
    assert f"'{after}', whose largest is output 'y'" in source.notes[-1]


def test_one_sigmoid_is_the_second_of_two_classes(tmp_path: Path) -> None:
    nodes, tensors = body(1)
    file = saved(tmp_path, [*nodes, make("Sigmoid", ["raw"], ["y"])], tensors, {"y": (FLOAT, ["N", 1])})
    source, _ = onnx_source(file)
    assert source.model.num_classes == 2
    _, probabilities = ours(source)
    assert np.abs(probabilities[:, 1:] - theirs(file)).max() < 1e-6
    (reference,) = source.references(pictures())
    assert reference.output == "probabilities"
    assert np.abs(reference.values - probabilities).max() < 1e-6


PAIR = [*body(K)[0], SOFT, make("ArgMax", ["raw"], ["label"], axis=1, keepdims=0)]
FEATURES = make("Identity", ["f"], ["features"])
SCORES: dict[str, tuple[int, list[Any]]] = {"raw": (FLOAT, ["N", K]), "s": (FLOAT, ["N", K]), "label": (INT64, ["N"])}


@pytest.mark.parametrize("names", [("label", "s"), ("s", "label"), ("s", "raw"), ("raw", "s", "label")])
def test_outputs_that_say_the_same_are_one(names: tuple[str, ...], tmp_path: Path) -> None:
    file = saved(tmp_path, PAIR, body(K)[1], {n: SCORES[n] for n in names})
    logits, _ = ours(onnx_source(file)[0])
    assert np.abs(softmax(logits) - theirs(file, "s")).max() < 1e-6


def test_other_outputs_need_a_word(tmp_path: Path) -> None:
    outputs: dict[str, tuple[int, list[Any]]] = {"raw": SCORES["raw"], "features": (FLOAT, ["N", 8])}
    file = saved(tmp_path, [*PAIR, FEATURES], body(K)[1], outputs)
    with pytest.raises(InputError, match=r"several outputs .* 'raw' of 4, 'features' of 8; say which with `output`"):
        onnx_source(file)
    logits, _ = ours(onnx_source(file, ForeignConfig(output="raw"))[0])
    assert np.abs(logits - theirs(file, "raw")).max() < 1e-5
    named = onnx_source(file, ForeignConfig(labels=("a", "b", "c", "d")))[0]
    assert np.abs(ours(named)[0] - logits).max() < 1e-6


def test_a_map_beside_the_answer_is_no_answer(tmp_path: Path) -> None:
    file = saved(tmp_path, PAIR, body(K)[1], {"r": (FLOAT, ["N", 8, None, None]), "raw": SCORES["raw"]})
    assert onnx_source(file)[0].model.num_classes == K


def sigmoids(tmp_path: Path) -> Path:
    nodes, tensors = body(K)
    return saved(tmp_path, [*nodes, make("Sigmoid", ["raw"], ["y"])], tensors, {"y": (FLOAT, ["N", K])})


def one_number(tmp_path: Path) -> Path:
    return saved(tmp_path, body(1, "y")[0], body(1)[1], {"y": (FLOAT, ["N", 1])})


def only_a_map(tmp_path: Path) -> Path:
    return saved(tmp_path, PAIR, body(K)[1], {"r": (FLOAT, ["N", 8, None, None])})


def unlike_argmax(tmp_path: Path) -> Path:
    nodes, tensors = body(K)
    lowest = make("ArgMin", ["raw"], ["y"], axis=1)
    return saved(tmp_path, [*nodes, lowest], tensors, {"y": (INT64, ["N", 1])})


def no_numbers(tmp_path: Path) -> Path:
    nodes, tensors = body(K)
    roots = [make("Neg", ["e"], ["n"]), make("Sqrt", ["n"], ["y"])]
    return saved(tmp_path, [*nodes, make("Exp", ["raw"], ["e"]), *roots], tensors, {"y": (FLOAT, ["N", K])})


def marks(tmp_path: Path) -> Path:
    """1 for what is as large as the largest, and 0 for the others."""
    nodes, tensors = body(K)
    tail = [
        make("ReduceMax", ["raw"], ["m"], axes=[1]),
        make("Equal", ["raw", "m"], ["e"]),
        make("Cast", ["e"], ["y"], to=FLOAT),
    ]
    return saved(tmp_path, [*nodes, *tail], tensors, {"y": (FLOAT, ["N", K])})


def rows_of_places(tmp_path: Path) -> Path:
    rows = make("Reshape", ["r", "rows"], ["y"])
    return saved(tmp_path, [*PAIR, rows], {**body(K)[1], "rows": np.asarray([0, 8, 25])}, {"y": (FLOAT, ["N", 8, 25])})


def detector(inside: bool, beside: dict[str, tuple[int, list[Any]]] | None = None) -> Callable[[Path], Path]:
    """Numbers of boxes whose scores compete; in a branch, too."""

    def form(tmp_path: Path) -> Path:
        nodes, tensors = body(20)
        tensors |= {"boxes": np.asarray([-1, 5, 4]), "one": np.asarray([1]), "cond": np.asarray(True)}
        tensors |= {"start": np.asarray([0]), "end": np.asarray([15]), "scores": np.asarray([-1, 3, 5])}
        cut = [make("Reshape", ["raw", "boxes"], ["b"]), make("Slice", ["raw", "start", "end", "one"], ["s"])]
        nms = make("NonMaxSuppression", ["b", "t", "one"], ["y"])
        if inside:
            no = helper.make_graph([make("Identity", ["none"], ["n"])], "no", [], [numbers("n")])
            yes = helper.make_graph([make("NonMaxSuppression", ["b", "t", "one"], ["i"])], "yes", [], [numbers("i")])
            nms = make("If", ["cond"], ["y"], then_branch=yes, else_branch=no)
            tensors["none"] = np.zeros((1, 3), np.int64)
        outputs: dict[str, tuple[int, list[Any]]] = {"y": (INT64, [None, 3]), "f": (FLOAT, [None, 3])}
        outputs = {**outputs, **(beside or {})}
        tail = [make("Reshape", ["s", "scores"], ["t"]), nms, make("Cast", ["y"], ["f"], to=FLOAT)]
        nodes[3].output[0] = nodes[4].input[0] = "flat"  # ``f`` is an output
        return saved(tmp_path, [*nodes, *cut, *tail], tensors, outputs)

    return form


def numbers(name: str) -> onnx.ValueInfoProto:
    value: onnx.ValueInfoProto = helper.make_tensor_value_info(name, INT64, [None, 3])
    return value


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (marks, "gives 1 for a class and 0 for all others, .* say with `output`"),
        (rows_of_places, r"found \[7, 8, 25\], rows for places of an image, as detectors give; give a classifier"),
        (detector(inside=False), "finds objects and no class of an image: it holds NonMaxSuppression"),
        (detector(inside=True), "finds objects and no class of an image: it holds NonMaxSuppression"),
        (detector(inside=False, beside={"b": (FLOAT, ["N", 5, 4])}), r"'b' of .* found \[7, 5, 4\], rows for places"),
        (sigmoids, "4 independent probabilities .* give `output=raw`"),
        (one_number, "gives one number for an image"),
        (only_a_map, r"'r' of .* must give \[batch, K\] for 7 images, found \[7, 8, 5, 5\], a map of each image"),
        (unlike_argmax, "must give logits or probabilities as floats, found 'y' of int64"),
        (no_numbers, "'y' of .* is not finite for noise: tensor 'y', made by Sqrt, is the first to hold NaN"),
    ],
)
def test_what_is_no_choice_of_a_class_is_refused(form: Callable[[Path], Path], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        onnx_source(form(tmp_path))


@pytest.mark.parametrize("inside", [False, True])
def test_found_objects_beside_scores_are_no_obstacle(inside: bool, tmp_path: Path) -> None:
    file = detector(inside, {"raw": (FLOAT, ["N", 20])})(tmp_path)
    logits, _ = ours(onnx_source(file)[0])
    assert np.abs(logits - theirs(file, "raw")).max() < 1e-5


def test_another_operator_of_a_detectors_name_finds_no_objects(tmp_path: Path) -> None:
    model = onnx.load(str(with_tail(tmp_path, LOGITS["identity"])))
    node = model.graph.node[-1]
    node.op_type, node.domain = "NonMaxSuppression", "my"
    assert [a.output for a in answers_of(model, None, tmp_path)] == ["y"]
    node.domain = ""
    with pytest.raises(InputError, match="finds objects"):
        answers_of(model, None, tmp_path)


MARKED: dict[str, Tail] = {
    "Hardmax": ([make("Hardmax", ["raw"], ["y"])], ["N", K], FLOAT),
    **{
        f"OneHot of {kind}": (
            [
                make("ArgMax", ["raw"], ["m"], axis=1, keepdims=0),
                make("Constant", [], ["depth"], value_int=K),
                make("Constant", [], ["values"], value=numpy_helper.from_array(np.asarray([0, 1], dtype))),
                make("OneHot", ["m", "depth", "values"], ["y"]),
            ],
            [None, None],
            kind,
        )
        for kind, dtype in ((FLOAT, np.float32), (INT64, np.int64))
    },
}


@pytest.mark.parametrize("tail", MARKED)
def test_a_mark_of_the_largest_leads_to_all(tail: str, tmp_path: Path) -> None:
    file = with_tail(tmp_path, MARKED[tail])
    source, _ = onnx_source(file)
    logits, _ = ours(source)
    assert (np.eye(K)[logits.argmax(1)] == theirs(file)).all()
    assert "'raw', whose largest is output 'y'" in source.notes[-1]


def test_an_inner_tensor_can_be_taken(tmp_path: Path) -> None:
    file = sigmoids(tmp_path)
    logits, _ = ours(onnx_source(file, ForeignConfig(output="raw"))[0])
    assert (np.abs(1 / (1 + np.exp(-logits)) - theirs(file))).max() < 1e-6
    with pytest.raises(InputError, match=r"no tensor 'rwa' \(did you mean 'raw'\?\); its outputs are y"):
        onnx_source(file, ForeignConfig(output="rwa"))


@pytest.mark.parametrize("values", [True, False])
def test_the_first_of_the_largest_leads_to_all(values: bool, tmp_path: Path) -> None:
    nodes, tensors = body(K)
    most = make("TopK", ["raw", "k"], ["v", "y"] if not values else ["y", "i"], axis=1)
    kind = FLOAT if values else INT64
    file = saved(tmp_path, [*nodes, most], {**tensors, "k": np.asarray([2])}, {"y": (kind, ["N", 2])})
    logits, _ = ours(onnx_source(file)[0])
    found = np.sort(logits, 1)[:, :-3:-1] if values else np.argsort(-logits, 1)[:, :2]
    assert np.abs(found - theirs(file)).max() < 1e-5


def test_percents_are_no_logits(tmp_path: Path) -> None:
    nodes, tensors = body(K)
    percent = {**tensors, "hundred": np.asarray(100, np.float32)}
    file = saved(tmp_path, [*nodes, SOFT, make("Mul", ["s", "hundred"], ["y"])], percent, {"y": (FLOAT, ["N", K])})
    with pytest.raises(InputError, match="at least 0 and sum to 100, neither logits nor probabilities; say with `out"):
        onnx_source(file)
    _, probabilities = ours(onnx_source(file, ForeignConfig(output="s"))[0])
    assert np.abs(100 * probabilities - theirs(file)).max() < 1e-4


def test_a_squeeze_of_all_axes_keeps_the_batch_of_one(tmp_path: Path) -> None:
    nodes, tensors = body(K)
    cubes = [CUBE, make("Reshape", ["raw", "cube"], ["q"]), make("Squeeze", ["q"], ["y"])]
    file = saved(tmp_path, [*nodes, *cubes], tensors, {"y": (FLOAT, [None, None])})
    session = plain_session(onnx_source(file)[0].graph.SerializeToString())
    for size in (1, 2, 6):
        found = session.run(["logits"], {"image": pictures()[:size]})[0]
        assert found.shape == (size, K)
        assert np.abs(found - theirs(file)[:size]).max() < 1e-5


@pytest.mark.parametrize("kind", [HALF, DOUBLE])
def test_a_graph_of_other_floats_is_made_float32(kind: int, tmp_path: Path) -> None:
    nodes, tensors = body(K)
    wide = {HALF: np.float16, DOUBLE: np.float64}[kind]  # type: ignore[index]
    more = [make("Cast", ["x"], ["xc"], to=kind), *nodes, make("Add", ["raw", "c0"], ["y"])]
    nodes[0].input[0] = "xc"
    scalar = make("Constant", [], ["c0"], value=numpy_helper.from_array(np.asarray(0.25, wide)))
    file = saved(tmp_path, [scalar, *more], {k: v.astype(wide) for k, v in tensors.items()}, {"y": (kind, ["N", K])})
    source, _ = onnx_source(file)
    assert "and what is made of it in float32" in source.notes[0]
    assert {i.data_type for i in source.graph.graph.initializer} <= {FLOAT, INT64}
    logits, _ = ours(source)
    plain = saved(tmp_path, [*body(K)[0], make("Identity", ["raw"], ["y"])], tensors, {"y": (FLOAT, ["N", K])})
    assert np.abs(logits - theirs(plain) - 0.25).max() < (2e-2 if kind == HALF else 1e-5)
