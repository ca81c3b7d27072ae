"""Builds small image classifiers node by node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIZE, CLASSES = 12, 3


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A graph of the corpus, and what is expected of it."""

    name: str
    kind: Literal["names", "legal", "fused", "edges", "refused"]
    model: onnx.ModelProto
    expected: Literal["taken", "rejected", "refused"] = "taken"
    """``rejected``: taken, and its INT8 form is bound to be so bad that the verdict says no (exit code 1)."""
    says: str = ""
    """Words of the refusal."""
    least_db: float = 25.0
    """Least signal-to-noise ratio of the INT8 logits, in decibels."""
    beside: dict[str, bytes] = field(default_factory=dict)
    """Files beside it, by name."""
    rounding: float = 1e-5
    """Largest difference from the file's own answers, relative to the largest of them."""
    layers: int = 1
    """Fewest Q nodes of its INT8 form; 0 if it has no layer that INT8 can compute, so that ``quantize`` refuses it."""

    def write(self, folder: Path) -> Path:
        """Write the file, and those beside it; gives its path."""
        path = folder / "theirs.onnx"
        path.write_bytes(self.model.SerializeToString())
        for name, data in self.beside.items():
            (folder / name).write_bytes(data)
        return path


class Net:
    """A graph under construction; each method gives the name of what it adds."""

    def __init__(self, seed: int = 0, size: int = SIZE, opset: int = 17, ir: int = 9) -> None:
        self.rng = np.random.default_rng(seed)
        self.size, self.opset, self.ir = size, opset, ir
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.domains: dict[str, int] = {}
        self.image = "x"
        self.count = 0

    def new(self, what: str) -> str:
        self.count += 1
        return f"{what}{self.count}"

    def constant(self, values: Any, name: str = "", dtype: Any = np.float32) -> str:
        name = name or self.new("w")
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def weight(self, *shape: int, scale: float = 0.3, name: str = "") -> str:
        return self.constant(self.rng.normal(0, scale, shape), name)

    def integers(self, *values: int) -> str:
        return self.constant(np.asarray(values), dtype=np.int64)

    def node(self, kind: str, *inputs: str, end: str = "", outputs: Sequence[str] = (), **attributes: Any) -> str:
        names = list(outputs) or [end or self.new(kind.lower())]
        self.nodes.append(helper.make_node(kind, list(inputs), names, self.new(f"{kind}_"), **attributes))
        return names[0]

    def conv(self, x: str, channels: tuple[int, int], kernel: int = 3, end: str = "", **attributes: Any) -> str:
        wide, narrow = channels
        weight = self.weight(narrow, wide // int(attributes.get("group", 1)), kernel, kernel)
        return self.node("Conv", x, weight, self.weight(narrow, scale=0.1), end=end, **attributes)

    def stem(self, channels: int = 8) -> str:
        """Conv and Relu: [N, 8, 5, 5] of images of 12."""
        return self.node("Relu", self.conv(self.image, (3, channels), strides=[2, 2]))

    def pooled(self, x: str) -> str:
        return self.node("Flatten", self.node("GlobalAveragePool", x))

    def head(self, x: str, channels: int = 8, end: str = "y") -> str:
        """GlobalAveragePool, Flatten, Gemm."""
        return self.node("Gemm", self.pooled(x), self.weight(channels, CLASSES, scale=1.0), self.bias(), end=end)

    def bias(self) -> str:
        return self.constant(self.rng.normal(0, 0.1, CLASSES))

    def model(
        self, end: str = "y", batch: str | int = "N", shape: Sequence[Any] | None = None, check: bool = True
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(self.image, TensorProto.FLOAT, [batch, 3, self.size, self.size])],
            [helper.make_tensor_value_info(end, TensorProto.FLOAT, shape or [batch, CLASSES])],
            self.constants,
        )
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, v) for d, v in self.domains.items())]
        made: onnx.ModelProto = helper.make_model(
            graph, opset_imports=opsets, ir_version=self.ir, functions=self.functions
        )
        if check:
            onnx.checker.check_model(made)
        return made


def info(name: str, *shape: Any, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """Return the declaration of a tensor."""
    value: onnx.ValueInfoProto = helper.make_tensor_value_info(name, kind, list(shape))
    return value


def body(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[onnx.TensorProto] = (),
) -> onnx.GraphProto:
    """Return the graph inside an If, a Loop or a Scan."""
    graph: onnx.GraphProto = helper.make_graph(list(nodes), "inside", list(inputs), list(outputs), list(constants))
    return graph


def tensor(values: Any, name: str = "", dtype: Any = np.float32) -> onnx.TensorProto:
    """Return a constant."""
    made: onnx.TensorProto = numpy_helper.from_array(np.asarray(values, dtype), name)
    return made


def pixels(count: int = 16, size: int = SIZE, seed: int = 1) -> NDArray[np.uint8]:
    """Return coloured noise ``[N, S, S, 3]``."""
    rng = np.random.default_rng(seed)
    tones = rng.integers(40, 215, (count, 1, 1, 3))
    return np.clip(rng.normal(tones, 40, (count, size, size, 3)), 0, 255).astype(np.uint8)
