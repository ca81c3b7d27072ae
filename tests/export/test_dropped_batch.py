"""Graphs for one image whose answer, or an inner tensor, has no axis for the batch; and our names in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qdeploy.core.errors import InputError
from qdeploy.export.int8.step import require_layers
from qdeploy.export.sources.onnx_file import onnx_source
from tests.export.test_foreign_graphs import PIXELS, logits, theirs
from tests.foreign.build import CLASSES, Net
from tests.foreign.names import renamed

Form = Callable[[Net, str], str]


def table(net: Net, x: str) -> str:
    return net.node("Gemm", net.pooled(x), net.weight(8, CLASSES, scale=1.0), net.bias())


def by_vector(net: Net, vector: str) -> str:
    return net.node("Add", net.node("MatMul", vector, net.weight(8, CLASSES, scale=1.0)), net.bias())


def pool(net: Net, x: str) -> str:
    return net.node("GlobalAveragePool", x)


def first(net: Net, x: str) -> str:
    return net.node("Gather", x, net.constant(0, dtype=np.int64), axis=0)


def two_pools(net: Net, x: str) -> str:
    vectors = [
        net.node("Squeeze", net.node(k, x), net.integers(0, 2, 3)) for k in ("GlobalAveragePool", "GlobalMaxPool")
    ]
    return net.node("MatMul", net.node("Concat", *vectors, axis=0), net.weight(16, CLASSES))


def conv_of_one(net: Net, x: str) -> str:
    again = net.node("Unsqueeze", net.node("Squeeze", x, net.integers(0)), net.integers(0))
    return net.node("Reshape", table(net, net.conv(again, (8, 8))), net.integers(-1))


FORMS: dict[str, Form] = {
    "squeezed": lambda n, x: n.node("Squeeze", table(n, x), n.integers(0)),
    "squeezed from behind": lambda n, x: n.node("Squeeze", table(n, x), n.integers(-2)),
    "the first": lambda n, x: first(n, table(n, x)),
    "flat": lambda n, x: n.node("Reshape", table(n, x), n.integers(-1)),
    "of K": lambda n, x: n.node("Reshape", table(n, x), n.integers(CLASSES)),
    "by a flat vector": lambda n, x: by_vector(n, n.node("Reshape", pool(n, x), n.integers(-1))),
    "by a squeezed vector": lambda n, x: by_vector(n, n.node("Squeeze", pool(n, x))),
    "mean of all but channels": lambda n, x: by_vector(n, n.node("ReduceMean", x, axes=[0, 2, 3], keepdims=0)),
    "the first image": lambda n, x: by_vector(n, n.node("ReduceMean", first(n, x), axes=[1, 2], keepdims=0)),
    "rows of places": lambda n, x: by_vector(
        n, n.node("ReduceMax", n.node("Reshape", x, n.integers(8, 25)), axes=[1], keepdims=0)
    ),
    "two pools": two_pools,
    "a layer behind it": conv_of_one,
}
ENDS: dict[str, Form] = {
    "as it is": lambda n, x: n.node("Identity", x, end="y"),
    "softmax": lambda n, x: n.node("Softmax", x, axis=0, end="y"),
    "log of it": lambda n, x: n.node("LogSoftmax", x, axis=-1, end="y"),
    "a row again": lambda n, x: n.node("Unsqueeze", x, n.integers(0), end="y"),
    "less its mean": lambda n, x: n.node("Sub", x, n.node("ReduceMean", x, axes=[0], keepdims=1), end="y"),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("form", FORMS)
def test_an_answer_without_a_batch_gets_one(form: str, end: str, tmp_path: Path) -> None:
    net = Net(len(form))
    ENDS[end](net, FORMS[form](net, net.stem()))
    model = net.model(batch=1, shape=[1, CLASSES] if "row" in end else [CLASSES])
    require_the_same(model, tmp_path, alone=False, probabilities=end in ("softmax", "log of it"))


def require_the_same(model: onnx.ModelProto, folder: Path, *, alone: bool, probabilities: bool = False) -> None:
    """Take a file, and compare a batch with what the file gives image by image."""
    file = folder / "theirs.onnx"
    onnx.save(model, file)
    source, rules = onnx_source(file)
    assert any("one image at a time" in n for n in source.notes) == alone
    rows = theirs(file, rules.mean, rules.std)
    expected, found = rows.reshape(-1, CLASSES), logits(source.graph)
    if probabilities:
        found = found - np.log(np.exp(found).sum(1, keepdims=True))
        expected = np.log(expected) if expected.min() >= 0 else expected
    assert np.abs(found - expected).max() <= 1e-5 * max(1.0, float(np.abs(expected).max()))
    if not alone:
        require_layers(source.graph)


def resized(net: Net, mode: str, *sizes: int) -> str:
    return net.node("Resize", net.stem(), "", "", net.integers(1, 8, *sizes), mode=mode)


def recurrent(net: Net, kind: str, gates: int, lengths: bool) -> str:
    """The places one after the other, from a first state of one image."""
    rows = net.node("Transpose", net.node("Reshape", net.stem(), net.integers(1, 8, 25)), perm=[2, 0, 1])
    weights = (net.weight(1, 4 * gates, 8), net.weight(1, 4 * gates, 4), "")
    states = [net.weight(1, 1, 4, scale=1.0) for _ in range(2 if kind == "LSTM" else 1)]
    count = net.constant([20], dtype=np.int32) if lengths else ""
    net.node(kind, rows, *weights, count, *states, outputs=["every", "last"], hidden_size=4)
    return "last"


def in_places(net: Net, kind: str, gates: int, lengths: bool) -> str:
    recurrent(net, kind, gates, lengths)
    return net.node("Unsqueeze", net.node("Squeeze", "last", net.integers(0)), net.integers(2, 3))


def flat_and_back(net: Net) -> str:
    """By shapes as torch's newer exporter writes them."""
    flat = net.node("Reshape", net.stem(), net.integers(1, -1), allowzero=1)
    return net.node("Reshape", flat, net.integers(1, 8, 5, 5), allowzero=1)


def sampled(net: Net) -> str:
    grid = net.constant(net.rng.uniform(-1, 1, (1, 4, 4, 2)))
    return net.node("GridSample", net.stem(), grid)


def joined_behind(net: Net) -> str:
    return net.node("Concat", net.stem(), net.weight(1, 8, 5, 2), axis=3)


SINGLE: dict[str, tuple[Callable[[Net], str], int]] = {
    **{f"Resize, {m}": (lambda n, m=m: resized(n, m, 7, 9), 8) for m in ("nearest", "linear", "cubic")},  # type: ignore[misc]
    "Resize to less": (lambda n: resized(n, "linear", 3, 4), 8),
    **{k: (lambda n, k=k, g=g: in_places(n, k, g, False), 4) for k, g in (("LSTM", 4), ("GRU", 3), ("RNN", 1))},  # type: ignore[misc]
    "LSTM with lengths": (lambda n: in_places(n, "LSTM", 4, True), 4),
    "Reshape with allowzero": (flat_and_back, 8),
    "GridSample": (sampled, 8),
    "joined along the last axis": (joined_behind, 8),
}


@pytest.mark.parametrize("form", SINGLE)
def test_what_is_written_for_one_image_is_made_for_any(form: str, tmp_path: Path) -> None:
    net = Net(len(form))
    make, channels = SINGLE[form]
    net.head(make(net), channels=channels)
    require_the_same(net.model(batch=1), tmp_path, alone=False)


@pytest.mark.parametrize("soft", [False, True])
def test_an_answer_behind_the_directions_of_an_lstm_is_taken(soft: bool, tmp_path: Path) -> None:
    net = Net(7)
    scores = net.node("MatMul", recurrent(net, "LSTM", 4, False), net.weight(4, CLASSES, scale=3.0), end="z")
    net.node("Softmax" if soft else "Identity", scores, end="y")
    model = net.model(batch=1, shape=[1, 1, CLASSES])
    require_the_same(model, tmp_path, alone=False, probabilities=soft)
    model.graph.node.append(helper.make_node("ArgMax", ["y"], ["chosen"], axis=2))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("chosen", TensorProto.INT64, [1, 1, 1]))
    onnx.save(model, tmp_path / "chosen.onnx")
    source, _ = onnx_source(tmp_path / "chosen.onnx")
    assert not any("one image at a time" in n for n in source.notes)
    assert np.abs(logits(source.graph) - logits(onnx_source(tmp_path / "theirs.onnx")[0].graph)).max() < 1e-5


def test_states_beside_an_answer_that_is_refused_are_none(tmp_path: Path) -> None:
    net = Net(7)
    state = recurrent(net, "LSTM", 4, False)
    net.node("Sigmoid", table(net, net.nodes[1].output[0]), end="y")
    model = net.model(batch=1)
    model.graph.output.append(helper.make_tensor_value_info(state, TensorProto.FLOAT, [1, 1, 4]))
    onnx.save(model, tmp_path / "theirs.onnx")
    with pytest.raises(InputError, match="'y' of .* independent probabilities"):
        onnx_source(tmp_path / "theirs.onnx")


def test_a_resize_of_a_batch_of_four_is_made_for_any(tmp_path: Path) -> None:
    net = Net(4)
    net.head(net.node("Resize", net.stem(), "", "", net.integers(4, 8, 7, 7), mode="nearest"))
    onnx.save(net.model(batch=4), tmp_path / "theirs.onnx")
    source, _ = onnx_source(tmp_path / "theirs.onnx")
    assert not any("one image at a time" in n for n in source.notes)
    require_layers(source.graph)
    whole = logits(source.graph)
    assert np.abs(logits(source.graph, PIXELS[:3]) - whole[:3]).max() < 1e-5


OURS = (
    *("qd_one", "qd_row_0", "qd_flat", "qd_first", "qd_shape", "qd_count", "qd_counted_0", "qd_counted_0_after"),
    *("x_of_one", "y_of_one", *(f"w{i}_of_{k}" for i in range(3) for k in range(4))),
)


def turned(net: Net) -> None:
    """Images lie behind the places, so that the batch cannot be taken out."""
    places = net.node("Transpose", net.node("Reshape", net.stem(), net.integers(8, 25)), perm=[1, 0])
    mean = net.node("ReduceMean", places, axes=[0], keepdims=1)
    net.node("Gemm", mean, net.weight(8, CLASSES, scale=1.0), net.bias(), end="y")


def with_token(net: Net) -> None:
    """A class token of three axes is joined to the places of an image."""
    places = net.node("Transpose", net.node("Reshape", net.stem(), net.integers(1, 8, 25)), perm=[0, 2, 1])
    joined = net.node("Concat", net.weight(1, 1, 8), places, axis=1)
    mean = net.node("ReduceMean", joined, axes=[1], keepdims=0)
    net.node("Gemm", mean, net.weight(8, CLASSES, scale=1.0), net.bias(), end="y")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("form", [turned, with_token])
def test_names_of_ours_in_a_file_for_one_image_change_nothing(
    form: Callable[[Net], None], seed: int, tmp_path: Path
) -> None:
    net = Net(seed)
    form(net)
    model = net.model(batch=1)
    known = [i.name for i in model.graph.initializer] + [n.output[0] for n in model.graph.node[:-1]]
    rng = np.random.default_rng(seed)
    count = min(len(known), len(OURS))
    pairs = zip(rng.choice(known, count, replace=False), rng.choice(OURS, count, replace=False), strict=True)
    model = renamed(model, {str(a): str(b) for a, b in pairs})
    require_the_same(model, tmp_path, alone=form is turned)
