"""What feeds a division, a root or a logarithm stays in float: INT8 gives numbers wherever the float model does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from qdeploy.core.metrics import Floats, sqnr_db
from qdeploy.data.dataset import Split
from qdeploy.export.int8 import quantize as quantize_module
from qdeploy.export.int8.calibrate import calibrate
from qdeploy.export.int8.divisors import feeding_divisions
from qdeploy.export.int8.encodings import encoding_for
from qdeploy.export.int8.quantize import quantize
from qdeploy.export.sources.foreign import ForeignConfig
from qdeploy.export.sources.onnx_file import onnx_source
from tests.foreign.build import CLASSES, SIZE, Net, pixels
from tests.ort_session import plain_session

PIXELS = pixels()
SPLIT = Split(pixels=PIXELS, labels=np.zeros(len(PIXELS), np.int64), hashes=tuple(map(str, range(len(PIXELS)))))
DARK = np.zeros((2, SIZE, SIZE, 3), np.uint8)


def square(net: Net, x: str) -> str:
    return net.node("Mul", x, x)


def total(net: Net, x: str, axis: int = 1) -> str:
    return net.node("ReduceSum", x, net.integers(axis), keepdims=1)


def with_eps(net: Net, x: str) -> str:
    return net.node("Add", x, net.constant(1e-12))


def l2(net: Net, x: str) -> str:
    return net.node("Div", x, net.node("Sqrt", with_eps(net, total(net, square(net, x)))))


def l2_by_reciprocal(net: Net, x: str) -> str:
    return net.node("Mul", x, net.node("Reciprocal", net.node("Sqrt", with_eps(net, total(net, square(net, x))))))


def l2_by_power(net: Net, x: str) -> str:
    sums = total(net, net.node("Pow", x, net.constant(2.0)))
    return net.node("Mul", x, net.node("Pow", with_eps(net, sums), net.constant(-0.5)))


def shares(net: Net, x: str) -> str:
    x = net.node("Abs", x)
    return net.node("Div", x, total(net, x))


def logarithm(net: Net, x: str) -> str:
    return net.node("Log", net.node("Abs", x))


def by_a_part(net: Net, x: str) -> str:
    first = net.node("Slice", x, net.integers(0), net.integers(1), net.integers(1))
    turned = net.node("Transpose", net.node("Reshape", first, net.integers(1, -1)), perm=[1, 0])
    return net.node("Div", x, turned)


def by_a_concat(net: Net, x: str) -> str:
    parts = net.node("Concat", x, net.node("Mul", x, net.constant(0.5)), axis=1)
    return net.node("Div", x, net.node("ReduceMean", net.node("Abs", parts), net.integers(1), keepdims=1))


def response(net: Net, x: str) -> str:
    """Global response normalisation of the features of one image."""
    size = net.node("Sqrt", square(net, x))
    return net.node("Mul", x, net.node("Div", size, net.node("ReduceMean", size, net.integers(1), keepdims=1)))


def layer_norm(net: Net, x: str) -> str:
    centred = net.node("Sub", x, net.node("ReduceMean", x, net.integers(1), keepdims=1))
    variance = net.node("ReduceMean", square(net, centred), net.integers(1), keepdims=1)
    return net.node("Div", centred, net.node("Sqrt", net.node("Add", variance, net.constant(1e-10))))


FORMS = (l2, l2_by_reciprocal, l2_by_power, shares, logarithm, by_a_part, by_a_concat, response, layer_norm)
NORMALISED = (l2, l2_by_reciprocal, l2_by_power, shares, layer_norm)


def model_with(form: Callable[[Net, str], str], seed: int = 0) -> onnx.ModelProto:
    """Return a classifier whose features of a dark image are a hundredth of those of others."""
    net = Net(seed, opset=18)
    maps = net.node("Relu", net.node("Conv", net.image, net.weight(8, 3, 3, 3), strides=[2, 2]))
    pooled = net.pooled(maps)
    features = net.node("Gemm", pooled, net.weight(8, 8), net.constant(net.rng.uniform(0.001, 0.002, 8)))
    head = net.weight(8, CLASSES, scale=1.0)
    net.node("Gemm", form(net, features), head, net.bias(), end="y")
    return net.model()


def float_graph(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    path = folder / "theirs.onnx"
    onnx.save(model, str(path))
    return onnx_source(path, ForeignConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))[0].graph


def logits(model: onnx.ModelProto, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Floats:
    found: Floats = plain_session(model.SerializeToString(), threads=1).run(["logits"], {"image": images})[0]
    return found


@pytest.mark.parametrize("target", ["x86", "portable"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_int8_gives_numbers_where_float_does(
    form: Callable[[Net, str], str], target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDEPLOY_CACHE", f"{tmp_path}/cache")
    graph = float_graph(model_with(form), tmp_path)
    encoding = encoding_for(target)
    ranges = calibrate(graph, SPLIT, 0).ranges("minmax", encoding.symmetric)
    expected = logits(graph, DARK)
    assert np.isfinite(expected).all()
    int8 = quantize(graph, ranges, encoding)
    assert any(node.op_type == "QuantizeLinear" for node in int8.graph.node)
    found = logits(int8, DARK)
    assert np.isfinite(found).all()
    if form in NORMALISED:  # the others leave the range of the images that it was calibrated on
        assert sqnr_db(expected, found) > 10


def test_without_it_some_give_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDEPLOY_CACHE", f"{tmp_path}/cache")
    monkeypatch.setattr(quantize_module, "feeding_divisions", lambda graph: frozenset())
    broken = []
    for form in FORMS:
        graph = float_graph(model_with(form), tmp_path)
        int8 = quantize(graph, calibrate(graph, SPLIT, 0).ranges("minmax", False), encoding_for("x86"))
        expected, found = logits(graph, DARK), logits(int8, DARK)
        if not np.isfinite(found).all() or sqnr_db(expected, found) < 10:
            broken.append(form.__name__)
    assert len(broken) > 4, broken


def test_only_what_feeds_a_division_stays_in_float(tmp_path: Path) -> None:
    net = Net(opset=18)
    maps = net.stem()
    second = net.node("Relu", net.conv(maps, (8, 8)))
    features = net.node("Gemm", net.pooled(second), net.weight(8, 8), net.constant(np.full(8, 0.1)), end="features")
    scaled = net.node("Div", features, net.constant(2.0))  # a constant divisor is no matter
    power = net.node("Pow", scaled, net.constant(3.0))
    net.node("Gemm", power, net.weight(8, CLASSES), net.bias(), end="y")
    assert feeding_divisions(net.model().graph) == frozenset()
    for form in (l2, layer_norm):
        model = model_with(form)
        names = feeding_divisions(model.graph)
        layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
        assert [node.name in names for node in layers] == [False, True, False]


@pytest.mark.parametrize(
    ("bounds", "absorbed"),
    [((0.0, 6.0), True), ((-1.0, 1.0), True), ((None, 2.0), True), ((0.3, 2.0), False), ((-2.0, -0.3), False)],
)
def test_a_clip_is_absorbed_only_about_zero(
    bounds: tuple[float | None, float], absorbed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDEPLOY_CACHE", f"{tmp_path}/cache")
    net = Net()
    low, high = ("" if v is None else net.constant(v) for v in bounds)
    maps = net.node("Clip", net.conv(net.image, (3, 8), strides=[2, 2]), low, high)
    net.head(net.node("Relu", net.conv(maps, (8, 8))))
    graph = float_graph(net.model(), tmp_path)
    int8 = quantize(graph, calibrate(graph, SPLIT, 0).ranges("minmax", False), encoding_for("x86"))
    assert any(node.op_type == "Clip" for node in int8.graph.node) is not absorbed
    assert sqnr_db(logits(graph, DARK), logits(int8, DARK)) > 20
