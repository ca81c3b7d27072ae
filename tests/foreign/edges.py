"""The edges of float32: subnormal and infinite values, masks, logits of thousands, channels and layers of zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import onnx

from tests.foreign.build import CLASSES, Foreign, Net

LEAST = float(np.finfo(np.float32).min)


def _dead(scale: float, bias: float | None = None, kind: str = "Conv") -> onnx.ModelProto:
    """A residual branch whose weights are next to nothing."""
    net = Net(1)
    stem = net.stem()
    shifts = [] if bias is None else [net.constant(net.rng.normal(0, 1, 8) * bias)]
    if kind == "Conv":
        branch = net.node("Conv", stem, net.constant(net.rng.normal(0, 1, (8, 8, 1, 1)) * scale), *shifts)
    else:
        turned = net.node("Transpose", stem, perm=[0, 2, 3, 1])
        product = net.node("MatMul", turned, net.constant(net.rng.normal(0, 1, (8, 8)) * scale))
        branch = net.node("Transpose", product, perm=[0, 3, 1, 2])
    net.head(net.node("Add", stem, net.node("Relu", branch)))
    return net.model()


def _small_and_back(small: float) -> onnx.ModelProto:
    """A layer with tiny outputs that a Mul makes large again."""
    net = Net(2)
    tiny = net.node("Mul", net.stem(), net.constant(small))
    x = net.conv(tiny, (8, 8), kernel=1)
    net.constants[-1].CopyFrom(onnx.numpy_helper.from_array(np.zeros(8, np.float32), net.constants[-1].name))
    net.head(net.node("Mul", x, net.constant(1.0 / small)))
    return net.model()


def _dead_channels(scale: float) -> onnx.ModelProto:
    """Some channels of a convolution, with their biases, are next to nothing; so are some of its inputs."""
    net = Net(3)
    weight, bias = net.rng.normal(0, 0.3, (8, 8, 3, 3)), net.rng.normal(0, 0.1, 8)
    weight[::3] *= scale
    weight[:, 1] *= scale
    bias[::3] *= scale
    net.head(net.node("Relu", net.node("Conv", net.stem(), net.constant(weight), net.constant(bias))))
    return net.model()


def _masked(value: float, where: bool) -> onnx.ModelProto:
    """Attention in which half of the tokens are masked."""
    net = Net(4)
    tokens = net.node("Transpose", net.node("Reshape", net.stem(), net.integers(0, 8, 25)), perm=[0, 2, 1])
    q, k, v = (net.node("MatMul", tokens, net.weight(8, 8)) for _ in "qkv")
    scores = net.node("MatMul", q, net.node("Transpose", k, perm=[0, 2, 1]))
    hidden = np.tril(np.ones((25, 25), bool), 0)
    if where:
        masked = net.node("Where", net.constant(hidden, dtype=np.bool_), scores, net.constant(value))
    else:
        masked = net.node("Add", scores, net.constant(np.where(hidden, 0.0, value)))
    mixed = net.node("MatMul", net.node("Softmax", masked, axis=-1), v)
    pooled = net.node("ReduceMean", mixed, axes=[1], keepdims=0)
    net.node("Gemm", pooled, net.weight(8, CLASSES, scale=1.0), net.bias(), end="y")
    return net.model()


def _padded(value: float) -> onnx.ModelProto:
    """Padding before a maximum, with a value that never is one."""
    net = Net(5)
    pads = net.integers(0, 0, 1, 1, 0, 0, 1, 1)
    padded = net.node("Pad", net.conv("x", (3, 8), strides=[2, 2]), pads, net.constant(value))
    net.head(net.conv(net.node("MaxPool", padded, kernel_shape=[3, 3]), (8, 8), kernel=1))
    return net.model()


def _scaled_logits(factor: float) -> onnx.ModelProto:
    net = Net(6)
    pooled = net.pooled(net.conv(net.stem(), (8, 8)))
    weight, bias = net.rng.normal(0, factor, (8, CLASSES)), net.rng.normal(0, factor / 10, CLASSES)
    net.node("Gemm", pooled, net.constant(weight), net.constant(bias), end="y")
    return net.model()


def _zeros(what: str) -> onnx.ModelProto:
    """A layer of zeros: all of its weights, its outputs, or what it reads."""
    net = Net(7)
    stem = net.stem()
    if what == "weights":
        branch = net.node("Conv", stem, net.constant(np.zeros((8, 8, 1, 1))), net.weight(8))
    elif what == "layer":
        branch = net.node("Conv", stem, net.constant(np.zeros((8, 8, 1, 1))), net.constant(np.zeros(8)))
    elif what == "input":
        branch = net.conv(net.node("Relu", net.node("Neg", stem)), (8, 8), kernel=1)
    else:
        branch = net.node("Mul", stem, net.constant(np.zeros((1, 8, 1, 1))))
    net.head(net.node("Add", stem, net.node("Relu", branch)))
    return net.model()


def _infinite_inside(form: str) -> onnx.ModelProto:
    """Infinity or NaN inside, of which nothing is left at the end."""
    net = Net(8)
    stem = net.stem()
    if form == "sigmoid":  # 1 / (1 + exp(-x)), with x far below 0
        powers = net.node("Exp", net.node("Mul", net.conv(stem, (8, 8), kernel=1), net.constant(500.0)))
        x = net.node("Mul", stem, net.node("Div", net.constant(1.0), net.node("Add", powers, net.constant(1.0))))
    elif form == "divided":
        x = net.node("Min", net.node("Div", net.constant(1.0), stem), net.constant(4.0))
    elif form == "nan":
        ratio = net.node("Div", stem, stem)
        x = net.node("Where", net.node("IsNaN", ratio), net.constant(0.0), net.node("Mul", ratio, stem))
    elif form == "bound":
        x = net.node("Clip", stem, net.constant(-np.inf), net.constant(np.inf))
    elif form == "largest":
        x = net.node("Min", stem, net.constant(-LEAST))
    else:
        x = net.node("Max", net.node("Log", stem), net.constant(-3.0))
    net.head(net.conv(x, (8, 8), kernel=1))
    return net.model()


def _variance(value: float) -> onnx.ModelProto:
    """BatchNormalization of channels that never varied."""
    net = Net(9)
    x = net.conv("x", (3, 8), strides=[2, 2])
    variance = net.rng.uniform(0.5, 2, 8)
    variance[::2] = value
    x = net.node("BatchNormalization", x, *(net.weight(8) for _ in "abc"), net.constant(variance), epsilon=1e-3)
    net.head(net.node("Relu", x))
    return net.model()


def _bias(kind: str, value: float) -> onnx.ModelProto:
    """A bias far beside the products that it is added to."""
    net = Net(10)
    values = net.rng.normal(0, 0.1, 8)
    values[2] = value
    x = net.node("Conv", net.stem(), net.weight(8, 8, 1, 1), net.constant(values))
    x = net.node("Sigmoid" if kind == "bounded" else "Identity", x)
    net.head(x)
    return net.model()


def _wide(value: float) -> onnx.ModelProto:
    """Values that grow far beyond float16 and come back."""
    net = Net(11)
    x = net.node("Mul", net.stem(), net.constant(value))
    x = net.node("Mul", net.node("Relu", x), net.constant(1.0 / value))
    net.head(net.conv(x, (8, 8), kernel=1))
    return net.model()


def _not_finite(form: str) -> onnx.ModelProto:
    net = Net(12)
    x = net.conv("x", (3, 8), strides=[2, 2])
    if form == "root":
        x = net.node("Sqrt", x)
    elif form == "log":
        x = net.node("Log", net.node("Relu", x))
    elif form == "overflow":
        x = net.node("Exp", net.node("Mul", x, net.constant(1e4)))
    else:
        x = net.node("Div", x, net.node("Sub", x, x))
    net.head(x)
    return net.model()


def _broken_weight(kind: str, value: float) -> onnx.ModelProto:
    net = Net(13)
    shape: tuple[int, ...] = {"Conv": (8, 8, 1, 1), "Gemm": (8, CLASSES), "bias": (8,), "Mul": (1, 8, 1, 1)}[kind]
    values = net.rng.normal(0, 0.3, shape)
    values.flat[3] = value
    broken = net.constant(values, "broken")
    x = net.stem()
    if kind == "Conv":
        x = net.node("Conv", x, broken)
    elif kind == "bias":
        x = net.node("Conv", x, net.weight(8, 8, 1, 1), broken)
    elif kind == "Mul":
        x = net.node("Mul", x, broken)
    if kind == "Gemm":
        net.node("Gemm", net.pooled(x), broken, net.bias(), end="y")
    else:
        net.head(x)
    return net.model()


FORMS: dict[str, Callable[[], onnx.ModelProto]] = {
    **{f"a branch of {s:g}": partial(_dead, s) for s in (1e-45, 1e-40, 1e-38, 1e-36, 1e-30, 1e-20)},
    "a branch of 1e-38 with a bias": lambda: _dead(1e-38, 0.1),
    "a branch and its bias of 1e-39": lambda: _dead(1e-39, 1e-39),
    "a MatMul of 1e-39": lambda: _dead(1e-39, kind="MatMul"),
    **{f"values of {s:g} and back": partial(_small_and_back, s) for s in (1e-36, 1e-30, 1e-20, 1e-10)},
    **{f"channels of {s:g}": partial(_dead_channels, s) for s in (0.0, 1e-44, 1e-38, 1e-30, 1e-9)},
    **{f"mask of {v:g}": partial(_masked, v, False) for v in (-np.inf, LEAST, -1e9, -1e4, -100.0)},
    **{f"Where with {v:g}": partial(_masked, v, True) for v in (-np.inf, LEAST)},
    **{f"padding with {v:g}": partial(_padded, v) for v in (-np.inf, LEAST, -1e30)},
    **{f"logits of {f:g}": partial(_scaled_logits, f) for f in (1e-6, 1e3, 1e5, 1e10)},
    **{f"zeros: {w}": partial(_zeros, w) for w in ("weights", "layer", "input", "factor")},
    **{
        f"infinite inside: {f}": partial(_infinite_inside, f)
        for f in ("sigmoid", "divided", "nan", "bound", "largest", "log")
    },
    **{f"variance {v:g}": partial(_variance, v) for v in (0.0, 1e-12)},
    "a bias of 1e6": lambda: _bias("bounded", 1e6),
    "a bias of -1e12": lambda: _bias("bounded", -1e12),
    "a bias of 1e-42": lambda: _bias("free", 1e-42),
    **{f"values of {v:g}": partial(_wide, v) for v in (1e6, 1e20, 1e35)},
}
BROKEN: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    **{
        f"weights of {k} hold {v:g}": (partial(_broken_weight, k, v), "'broken' of .* not finite")
        for k, v in (("Conv", np.nan), ("Gemm", np.inf), ("bias", -np.inf), ("Mul", np.nan))
    },
}
ANSWERS_NOT_FINITE: dict[str, Callable[[], onnx.ModelProto]] = {
    f: partial(_not_finite, f) for f in ("root", "log", "overflow", "division")
}
"""Graphs whose answers are no numbers: they can be read, and are refused when they are run."""


SATURATED = ("a bias of 1e6", "a bias of -1e12")
"""Nets whose INT8 form is bound to be bad, which the verdict says: one channel takes all levels."""


def edge_graphs() -> Iterator[Foreign]:
    """Yield graphs at the edges of float32, and beyond."""
    for name, make in FORMS.items():
        if name in SATURATED:
            yield Foreign(name=name, kind="edges", model=make(), expected="rejected", least_db=-np.inf)
        else:
            yield Foreign(name=name, kind="edges", model=make(), least_db=18.0 if "mask" in name else 20.0)
    for name, (make, says) in BROKEN.items():
        yield Foreign(name=name, kind="edges", model=make(), expected="refused", says=says)
    for name, make in ANSWERS_NOT_FINITE.items():
        yield Foreign(name=f"not finite: {name}", kind="edges", model=make(), expected="refused", says="not finite")
