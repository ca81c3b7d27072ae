"""Small seeded graphs in the form of an artifact's: ``image`` in, one operator of interest, ``logits`` out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIZE = 9


class Graph:
    """Writes nodes one after the other; every Q/DQ pair's codes can be asked of ONNX Runtime."""

    def __init__(self, seed: int, size: int = SIZE) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.codes: list[str] = []
        self.size = size
        self._count = 0
        floats = self.node("Cast", ["image"], to=TensorProto.FLOAT)
        centred = self.node("Sub", [floats, self.constant(self.random.uniform(90, 150, (1, 1, 1, 3)), "float32")])
        self.start = self.node("Transpose", [centred], perm=[0, 3, 1, 2])

    def constant(self, values: Any, dtype: str) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values).astype(dtype), name))
        return name

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        self._count += 1
        name = f"{kind}_{self._count}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def pair(self, name: str, low: float, high: float, signed: bool = False) -> str:
        """Quantize to a range; return the floats behind the pair."""
        scale = (high - low) / 255
        zero = round(-low / scale) - (128 if signed else 0)
        words = [self.constant(scale, "float32"), self.constant(zero, "int8" if signed else "uint8")]
        codes = self.node("QuantizeLinear", [name, *words])
        self.codes.append(codes)
        return self.node("DequantizeLinear", [codes, *words])

    def weight(
        self, shape: tuple[int, ...], axis: int | None = 0, span: float = 0.1
    ) -> tuple[str, NDArray[np.float32]]:
        """Return a constant's dequantized name, and its scales."""
        count = shape[axis] if axis is not None else 1
        scales = self.random.uniform(0.2, 1, count).astype(np.float32) * np.float32(span / 127)
        scale = scales if axis is not None else scales[0]
        values = self.random.integers(-127, 128, shape)
        names = [self.constant(values, "int8"), self.constant(scale, "float32")]
        names.append(self.constant(np.zeros(np.shape(scale)), "int8"))
        return self.node("DequantizeLinear", names, **({} if axis is None else {"axis": axis})), scales

    def bias(self, step: NDArray[np.float32]) -> str:
        values = self.constant(self.random.integers(-9000, 9000, step.shape), "int32")
        names = [values, self.constant(step, "float32"), self.constant(np.zeros(step.shape), "int32")]
        return self.node("DequantizeLinear", names, axis=0)

    def entrance(self) -> str:
        """Return the image as codes of [-150, 160]."""
        return self.pair(self.start, -150, 160)

    def convolution(
        self, x: str, channels: int, outputs: int, kernel: int | tuple[int, int], low: float, high: float, **more: Any
    ) -> str:
        """Return a convolution on codes; its input has a scale of 310 / 255 or is given as ``scale``."""
        scale = np.float32(more.pop("scale", 310 / 255))
        groups = more.get("group", 1)
        sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        weight, scales = self.weight((outputs, channels // groups, *sides))
        made = self.node("Conv", [x, weight, self.bias(scales * scale)], kernel_shape=list(sides), **more)
        return self.pair(made, low, high)

    def spread(self, x: str, outputs: int, **more: Any) -> str:
        """Return codes in [-20, 20] of some channels."""
        return self.convolution(x, 3, outputs, 1, -20, 20, **more)

    def model(self, x: str, channels: int) -> onnx.ModelProto:
        """End with a mean and a matrix product on codes, and name the outputs as an artifact does."""
        mean = self.pair(self.node("GlobalAveragePool", [x]), -10, 10)
        weight, scales = self.weight((4, channels), 0, 2.0)
        flat = self.node("Flatten", [mean])
        product = self.node("Gemm", [flat, weight, self.bias(scales * np.float32(20 / 255))], transB=1)
        logits = self.pair(product, -25, 25)
        self.nodes.append(helper.make_node("Identity", [logits], ["logits"], "logits"))
        self.nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], "probabilities", axis=-1))
        image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", self.size, self.size, 3])
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in ("logits", "probabilities")]
        graph = helper.make_graph(self.nodes, "g", [image], ends, self.constants)
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        onnx.checker.check_model(model)
        return model


def image_of(seed: int, size: int = SIZE) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def conv(graph: Graph) -> str:
    return graph.convolution(graph.entrance(), 3, 5, 3, -30, 30, pads=[1, 1, 1, 1], strides=[2, 2])


def wide_conv(graph: Graph) -> str:
    x = graph.spread(graph.entrance(), 19)
    return graph.convolution(x, 19, 5, 3, -9, 12, pads=[1, 0, 1, 2], scale=40 / 255)


def many_outputs(graph: Graph) -> str:
    x = graph.convolution(graph.entrance(), 3, 70, 3, -20, 20, strides=[4, 4])
    return graph.convolution(x, 70, 5, 1, -9, 12, scale=40 / 255)


def bordered(graph: Graph) -> str:
    """Rows of 8 and of 4 pixels, whose windows reach above and below the image."""
    x = graph.convolution(graph.entrance(), 3, 20, 2, -20, 20)
    x = graph.convolution(x, 20, 20, 3, -12, 12, pads=[1, 1, 1, 1], scale=40 / 255)
    x = graph.convolution(x, 20, 12, 3, -9, 9, pads=[1, 1, 1, 1], strides=[2, 2], scale=24 / 255)
    x = graph.convolution(x, 12, 70, 3, -5, 5, pads=[1, 1, 1, 1], scale=18 / 255)
    return graph.convolution(x, 70, 5, 3, -4, 5, pads=[1, 1, 1, 1], scale=10 / 255)


def few_channels(graph: Graph) -> str:
    """Depthwise windows of 8 and 16 channels, whose pixels are made together, and of more than 64."""
    x = graph.convolution(graph.entrance(), 3, 8, 3, -30, 30, pads=[1, 1, 1, 1])
    x = graph.convolution(x, 8, 8, 3, -12, 12, pads=[1, 1, 1, 1], group=8, scale=60 / 255)
    x = graph.convolution(x, 8, 16, 1, -9, 9, scale=24 / 255)
    x = graph.convolution(x, 16, 16, 3, -4, 4, pads=[1, 1, 1, 1], strides=[2, 2], group=16, scale=18 / 255)
    x = graph.convolution(x, 16, 70, 1, -3, 3, scale=8 / 255)
    return graph.convolution(x, 70, 70, 2, -1, 1, group=70, scale=6 / 255)


def long_windows(graph: Graph) -> str:
    """Windows of one row or one column without pads, over several rows: results are narrower than what they read."""
    x = graph.convolution(graph.entrance(), 3, 5, (1, 3), -20, 20)
    x = graph.convolution(x, 5, 20, (3, 1), -9, 9, scale=40 / 255)
    x = graph.convolution(x, 20, 16, (1, 3), -5, 5, scale=18 / 255)
    x = graph.convolution(x, 16, 16, (1, 3), -0.6, 0.6, group=16, scale=10 / 255)
    return graph.convolution(x, 16, 16, (3, 1), -0.1, 0.1, group=16, scale=1.2 / 255)


def image_itself(graph: Graph) -> str:
    """The image's bytes are the codes that a convolution and a product read."""
    image = graph.node("Cast", ["image"], to=TensorProto.FLOAT)
    x = graph.pair(graph.node("Transpose", [image], perm=[0, 3, 1, 2]), 0, 255)
    x = graph.convolution(x, 3, 5, 3, -70, 70, scale=1)
    weight, _ = graph.weight((3, 5), None)
    y = graph.pair(graph.node("MatMul", [graph.pair(image, 0, 255), weight]), -25, 25)
    y = graph.node("MaxPool", [graph.node("Transpose", [y], perm=[0, 3, 1, 2])], kernel_shape=[3, 3])
    return graph.pair(graph.node("Add", [x, y]), -60, 80)


def dilated(graph: Graph) -> str:
    return graph.convolution(graph.entrance(), 3, 5, 3, -30, 30, pads=[2, 2, 2, 2], dilations=[2, 2])


def grouped(graph: Graph) -> str:
    x = graph.spread(graph.entrance(), 20)
    return graph.convolution(x, 20, 10, 3, -3, 6, pads=[1, 1, 1, 1], group=5, scale=40 / 255)


def depthwise(graph: Graph) -> str:
    x = graph.spread(graph.entrance(), 37)
    return graph.convolution(x, 37, 37, 3, -3, 4, pads=[1, 1, 1, 1], strides=[2, 2], group=37, scale=40 / 255)


def relu_behind(graph: Graph) -> str:
    weight, scales = graph.weight((5, 3, 1, 1))
    made = graph.node("Conv", [graph.entrance(), weight, graph.bias(scales * np.float32(310 / 255))])
    return graph.pair(graph.node("Relu", [made]), -4, 20)


def float_bias(graph: Graph) -> str:
    weight, _ = graph.weight((5, 3, 1, 1))
    bias = graph.constant(graph.random.normal(size=5), "float32")
    return graph.pair(graph.node("Conv", [graph.entrance(), weight, bias]), -20, 20)


def residual(graph: Graph) -> str:
    x = graph.spread(graph.entrance(), 5)
    y = graph.convolution(x, 5, 5, 3, -7, 8, pads=[1, 1, 1, 1], scale=40 / 255)
    return graph.pair(graph.node("Add", [x, y]), -18, 22)


def gate(graph: Graph) -> str:
    x = graph.spread(graph.entrance(), 5)
    one = graph.convolution(x, 5, 1, 1, -3, 3, scale=40 / 255)
    opened = graph.pair(graph.node("Sigmoid", [one]), 0, 1)
    return graph.pair(graph.node("Mul", [x, opened]), -11, 11)


def squeeze(graph: Graph) -> str:
    x = graph.spread(graph.entrance(), 5)
    mean = graph.pair(graph.node("ReduceMean", [x, graph.constant([2, 3], "int64")], keepdims=1), -8, 8)
    return graph.pair(graph.node("Mul", [x, mean]), -60, 50)


def gelu(graph: Graph) -> str:
    x = graph.spread(graph.entrance(), 5)
    codes, _, zero = graph.nodes[-1].input
    steep = graph.constant(np.float32(40 / 255) * np.float32(1.702), "float32")
    slope = graph.node("DequantizeLinear", [codes, steep, zero])
    opened = graph.pair(graph.node("Sigmoid", [slope]), 0, 1)
    return graph.pair(graph.node("Mul", [x, opened]), -0.2, 18)


def concatenated(graph: Graph) -> str:
    start = graph.entrance()
    x, y = graph.spread(start, 2), graph.convolution(start, 3, 3, 1, -10, 25)
    return graph.pair(graph.node("Concat", [x, y], axis=1), -18, 22)


def pooled(graph: Graph) -> str:
    x = graph.spread(graph.entrance(), 5)
    return graph.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])


def attention_on_codes(graph: Graph) -> str:
    start = graph.entrance()
    shape = graph.constant([-1, 2, 5, 81], "int64")
    q, k = (graph.node("Reshape", [graph.spread(start, 10), shape]) for _ in range(2))
    scores = graph.pair(graph.node("MatMul", [graph.node("Transpose", [q], perm=[0, 1, 3, 2]), k]), -90, 90)
    shares = graph.pair(graph.node("Softmax", [scores], axis=-1), 0, 1)
    mixed = graph.node("MatMul", [k, graph.node("Transpose", [shares], perm=[0, 1, 3, 2])])
    return graph.node("Reshape", [graph.pair(mixed, -20, 20), graph.constant([-1, 10, 9, 9], "int64")])


def short_rows_on_codes(graph: Graph) -> str:
    """A softmax of rows of 16 codes, several of which are made together; their number is odd."""
    x = graph.node("Transpose", [graph.spread(graph.entrance(), 16)], perm=[0, 2, 3, 1])
    shares = graph.pair(graph.node("Softmax", [x], axis=-1), 0, 1)
    return graph.node("Transpose", [shares], perm=[0, 3, 1, 2])


def short_rows_of_floats(graph: Graph) -> str:
    x = graph.node("Transpose", [graph.spread(graph.entrance(), 32)], perm=[0, 2, 3, 1])
    x = graph.node("Mul", [graph.node("Softmax", [x], axis=-1), x])
    return graph.pair(graph.node("Transpose", [x], perm=[0, 3, 1, 2]), -20, 20)


def matrix_of_weights(graph: Graph) -> str:
    x = graph.node("Reshape", [graph.spread(graph.entrance(), 5), graph.constant([-1, 5, 9, 9], "int64")])
    weight, _ = graph.weight((9, 7), None)
    return graph.pair(graph.node("MatMul", [x, weight]), -8, 8)


def float_stem(graph: Graph) -> str:
    r = graph.random

    def made(x: str, shape: tuple[int, ...], **more: Any) -> str:
        words = [
            graph.constant(r.normal(size=shape) * 0.3, "float32"),
            graph.constant(r.normal(size=shape[0]), "float32"),
        ]
        return graph.node("Conv", [x, *words], **more)

    x = graph.node("Relu", [made(graph.start, (8, 3, 3, 3), pads=[1, 1, 1, 1])])
    x = made(x, (8, 1, 3, 3), group=8, pads=[1, 1, 1, 1], strides=[2, 2])
    x = graph.node("Clip", [made(x, (20, 8, 1, 1)), graph.constant(0, "float32"), graph.constant(6, "float32")])
    return graph.pair(made(x, (5, 20, 3, 3), pads=[1, 1, 1, 1]), -9, 14)


def float_rows(graph: Graph) -> str:
    """Convolutions whose first reads the image at once, with borders on some sides and holes in the window."""
    r, x = graph.random, graph.node("Cast", ["image"], to=TensorProto.FLOAT)
    x = graph.node("Transpose", [x], perm=[0, 3, 1, 2])
    shapes = (
        ((6, 3, 3, 2), {"pads": [2, 1, 0, 0], "dilations": [2, 1]}),
        ((6, 1, 2, 3), {"group": 6, "pads": [0, 1, 2, 1]}),
    )
    for shape, more in (*shapes, ((5, 6, 4, 1), {"strides": [3, 1], "pads": [3, 0, 3, 0]})):
        weight = graph.constant(r.normal(size=shape) * (0.01 if x.startswith("T") else 0.3), "float32")
        x = graph.node("Conv", [x, weight], **more)
        x = graph.node("Sigmoid", [x]) if shape[0] == 6 else x
    return graph.pair(x, -2, 2)


def float_attention(graph: Graph) -> str:
    x = graph.spread(graph.entrance(), 12)
    parts = [f"part_{i}" for i in range(2)]
    joined = graph.node("Reshape", [x, graph.constant([-1, 4, 3, 81], "int64")])
    graph.nodes.append(helper.make_node("Split", [joined], parts, "split", axis=1, num_outputs=2))
    scores = graph.node("MatMul", [graph.node("Transpose", [parts[0]], perm=[0, 1, 3, 2]), parts[1]])
    shares = graph.node("Softmax", [scores], axis=-1)
    mixed = graph.node("MatMul", [parts[1], graph.node("Transpose", [shares], perm=[0, 1, 3, 2])])
    return graph.pair(graph.node("Reshape", [mixed, graph.constant([-1, 6, 9, 9], "int64")]), -20, 20)


def transformer_floats(graph: Graph) -> str:
    x = graph.node("Reshape", [graph.spread(graph.entrance(), 5), graph.constant([-1, 5, 81], "int64")])
    x = graph.node("Transpose", [x], perm=[0, 2, 1])
    words = [graph.constant(graph.random.normal(size=5), "float32") for _ in range(2)]
    x = graph.node("LayerNormalization", [x, *words], axis=-1, epsilon=1e-5)
    x = graph.node("Add", [graph.node("Gelu", [x]), x])
    x = graph.node("Mul", [x, graph.node("Tanh", [graph.node("HardSwish", [x])])])
    x = graph.node("Reshape", [graph.node("Transpose", [x], perm=[0, 2, 1]), graph.constant([-1, 5, 9, 9], "int64")])
    return graph.pair(x, -3, 12)


def float_choice(graph: Graph) -> str:
    """The best of tokens by their largest value, with one in front, as a head does it."""
    x = graph.node("Reshape", [graph.spread(graph.entrance(), 6), graph.constant([-1, 6, 81], "int64")])
    norm = [graph.constant(graph.random.uniform(0.5, 1.5, 6), "float32") for _ in range(4)]
    x = graph.node("Transpose", [graph.node("BatchNormalization", [x, *norm], epsilon=1e-3)], perm=[0, 2, 1])
    last, middle = graph.constant([-1], "int64"), graph.constant([1], "int64")
    score = graph.node("ReduceMax", [x, last], keepdims=0)
    graph.nodes.append(helper.make_node("TopK", [score, graph.constant([23], "int64")], ["best", "places"], axis=1))
    shape = graph.constant([1, 23, 6], "int64")
    places = graph.node("Expand", [graph.node("Unsqueeze", ["places", last]), shape])
    kept = graph.node("GatherElements", [x, places], axis=1)
    kept = graph.node("Mul", [kept, graph.node("Sigmoid", [graph.node("Unsqueeze", ["best", last])])])
    first = graph.node("Expand", [graph.constant(graph.random.normal(size=(1, 1, 6)), "float32"), middle])
    x = graph.node("Transpose", [graph.node("Concat", [first, kept], axis=1)], perm=[0, 2, 1])
    return graph.pair(graph.node("Reshape", [x, graph.constant([-1, 6, 4, 6], "int64")]), -20, 30)


def line(graph: Graph) -> str:
    x = graph.node("Reshape", [graph.spread(graph.entrance(), 5), graph.constant([-1, 5, 81], "int64")])
    weight, scales = graph.weight((6, 5, 3))
    made = graph.node("Conv", [x, weight, graph.bias(scales * np.float32(40 / 255))], pads=[1, 2], strides=[2])
    return graph.node("Reshape", [graph.pair(made, -4, 5), graph.constant([-1, 6, 1, 41], "int64")])


def float_line(graph: Graph) -> str:
    x = graph.node("Reshape", [graph.start, graph.constant([-1, 3, 81], "int64")])
    weight = graph.constant(graph.random.normal(size=(4, 3, 4)) * 0.1, "float32")
    x = graph.node("Conv", [x, weight], auto_pad="SAME_UPPER", strides=[3])
    return graph.pair(graph.node("Reshape", [x, graph.constant([-1, 4, 1, 27], "int64")]), -30, 30)


def chosen(graph: Graph) -> str:
    """Every second row, some channels, zeros around, and windows beyond the end."""
    x = graph.node("Gather", [graph.spread(graph.entrance(), 5), graph.constant([4, 0, -3], "int64")], axis=1)
    ends = [graph.constant(v, "int64") for v in ([1, -9], [9, 100], [2, 3], [2, 1])]
    x = graph.node("Slice", [x, *ends])
    x = graph.node("Pad", [x, graph.constant([0, 1, 0, 2, 0, 0, 3, 0], "int64")])
    return graph.node("MaxPool", [x], kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1)


def float_tables(graph: Graph) -> str:
    """Chains on floats between codes, which differ by channel: 3 that lie one after the other, 4 and 2 mixed, and 1."""
    r = graph.random
    x = graph.node("Reshape", [graph.entrance(), graph.constant([-1, 3, 81], "int64")])
    x = graph.node("HardSwish", [graph.node("Mul", [x, graph.constant(r.uniform(0.2, 0.4, (3, 1)), "float32")])])
    x = graph.node("Reshape", [graph.pair(x, -1, 60), graph.constant([-1, 3, 9, 9], "int64")])
    x = graph.convolution(x, 3, 4, 1, -5, 5, scale=61 / 255)
    x = graph.pair(graph.node("Div", [x, graph.constant(r.uniform(1, 2, (1, 4, 1, 1)), "float32")]), -4, 4)
    x = graph.convolution(x, 4, 2, 1, -0.7, 0.7, scale=8 / 255)
    x = graph.pair(graph.node("Sub", [x, graph.constant(r.normal(size=(1, 2, 1, 1)) * 0.2, "float32")]), -0.9, 0.9)
    x = graph.convolution(x, 2, 5, 1, -0.1, 0.1, scale=1.8 / 255)
    return graph.pair(graph.node("Tanh", [graph.node("Mul", [x, graph.constant(3, "float32")])]), -0.3, 0.3)


def float_average(graph: Graph) -> str:
    size: dict[str, Any] = {"kernel_shape": [3, 2], "strides": [2, 1]}
    x = graph.node(
        "Pad", [graph.start, graph.constant([0, 0, 1, 0, 0, 0, 0, 2], "int64"), graph.constant(7, "float32")]
    )
    x = graph.node("AveragePool", [x], pads=[1, 0, 2, 1], **size)
    return graph.pair(graph.node("AveragePool", [x], count_include_pad=1, pads=[1, 1, 1, 1], **size), -60, 60)


CASES = {
    "conv": (conv, 5),
    "wide conv": (wide_conv, 5),
    "many outputs": (many_outputs, 5),
    "bordered": (bordered, 5),
    "few channels": (few_channels, 70),
    "long windows": (long_windows, 16),
    "image itself": (image_itself, 5),
    "dilated": (dilated, 5),
    "grouped": (grouped, 10),
    "depthwise": (depthwise, 37),
    "relu behind": (relu_behind, 5),
    "float bias": (float_bias, 5),
    "residual": (residual, 5),
    "gate": (gate, 5),
    "squeeze": (squeeze, 5),
    "gelu": (gelu, 5),
    "concatenated": (concatenated, 5),
    "pooled": (pooled, 5),
    "attention on codes": (attention_on_codes, 10),
    "matrix of weights": (matrix_of_weights, 5),
    "float stem": (float_stem, 5),
    "float rows": (float_rows, 5),
    "float attention": (float_attention, 6),
    "transformer floats": (transformer_floats, 5),
    "float choice": (float_choice, 6),
    "line": (line, 6),
    "float line": (float_line, 4),
    "chosen": (chosen, 4),
    "float average": (float_average, 3),
    "float tables": (float_tables, 5),
}
"""Name, and what writes the operator of interest, and the channels it gives."""
ON_CODES = tuple(name for name in CASES if "float" not in name and name not in ("attention on codes", "squeeze"))
"""Those all of whose operators but the last mean compute on codes in ONNX Runtime, too."""


def case_of(name: str, seed: int = 0) -> tuple[onnx.ModelProto, list[str]]:
    """Return a case's model, and the names of its codes."""
    write, channels = CASES[name]
    graph = Graph(seed)
    model = graph.model(write(graph), channels)
    return model, graph.codes
