"""The state of a translation from an ONNX graph: what each name of it is, and the operators so far.

Q/DQ pairs are folded here: a tensor behind a DequantizeLinear is a ``View`` of codes, and an operator whose inputs
are all views or quantized constants and whose result goes into one QuantizeLinear becomes an operator on codes, as in
ONNX Runtime. Everything else is in floats, with explicit ``quantize`` and ``dequantize`` where the two meet. The
rules are in ``lower``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import ArtifactError
from qdeploy.native.ir import Op, Tensor
from qdeploy.native.onnx_graph import Graph, Node

Array = NDArray[Any]
MOST_VALUES = 1 << 28
"""Of one tensor."""
OTHER_ENGINE = "use `engine=ort` for this file"


@dataclass(frozen=True)
class View:
    """A float tensor that is codes with a scale; several views may read one tensor with different scales."""

    codes: Tensor
    scale: float
    zero: int


@dataclass(frozen=True)
class Constant:
    """A constant; with the integers it was made of where it has them."""

    values: Array
    codes: Array | None = None
    scale: Array | None = None
    zero: int = 0


@dataclass(frozen=True)
class Places:
    """Whole numbers that say where along one axis of another tensor something is; every other axis repeats them."""

    tensor: Tensor
    """Flat, as floats."""
    axis: int
    shape: tuple[int, ...]


Value = Tensor | View | Constant | Places


class UnsupportedError(ArtifactError):
    """The model holds what the native compiler has no kernel for."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(f"the native engine cannot compile this model: {kind}: {why}", fix=OTHER_ENGINE)
        self.kind = kind
        self.why = why


def require_size(name: str, shape: tuple[int, ...]) -> None:
    """Check that a tensor has a size, and one that a program can hold.

    Raises:
        UnsupportedError: If not.
    """
    if min(shape, default=1) < 1 or prod(shape) > MOST_VALUES:
        raise UnsupportedError("graph", f"'{name}' would be of shape {list(shape)}")


class Lowering:
    """The state of one translation: what each name of the graph is, and the operators so far."""

    def __init__(self, graph: Graph, size: int) -> None:
        if len(graph.inputs) != 1 or graph.outputs != ["logits", "probabilities"]:
            raise UnsupportedError("graph", f"inputs {graph.inputs} and outputs {graph.outputs} are not an artifact's")
        self.graph = graph
        self.ops: list[Op] = []
        self.image = Tensor(graph.inputs[0], (1, size, size, 3), 1.0, 0)
        self.values: dict[str, Value] = {n: Constant(v) for n, v in graph.constants.items()}
        self.values[self.image.name] = View(self.image, 1.0, 0)
        self.readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in node.inputs:
                self.readers.setdefault(name, []).append(node)
        self._floats: dict[tuple[Tensor, float, int], Tensor] = {}

    def emit(self, kind: str, inputs: list[Tensor], output: Tensor, **attributes: Any) -> Tensor:
        """Add an operator and return what it makes.

        Raises:
            UnsupportedError: If the result has no size, or none that a program can hold.
        """
        require_size(output.name, output.shape)
        self.ops.append(Op(kind, inputs, output, attributes))
        return output

    def value(self, name: str) -> Value:
        """Return what a name is.

        Raises:
            UnsupportedError: If nothing makes it.
        """
        if name not in self.values:
            raise UnsupportedError("graph", f"nothing makes '{name}'")
        return self.values[name]

    def float_tensor(self, name: str) -> Tensor:
        """Return a name's value as floats: computed, converted from codes, or a constant."""
        value = self.value(name)
        if isinstance(value, Constant):
            return Tensor(name, value.values.shape, data=value.values.astype(np.float32))
        if isinstance(value, Places):
            raise UnsupportedError("TopK", f"'{name}' are places, which only a GatherElements of the same axis reads")
        return self.floats_of(value, name) if isinstance(value, View) else value

    def held(self, name: str) -> Tensor:
        """Return what a name's value is kept in: codes or floats."""
        value = self.value(name)
        return value.codes if isinstance(value, View) else self.float_tensor(name)

    def floats_of(self, view: View, name: str) -> Tensor:
        """Return a view's values; they are computed once."""
        key = (view.codes, view.scale, view.zero)
        if key not in self._floats:
            source = self.codes_of(view)
            self._floats[key] = self.emit("dequantize", [source], Tensor(f"{name}/float", source.shape))
        return self._floats[key]

    def codes_of(self, view: View) -> Tensor:
        """Return a view's codes as a tensor with the view's scale."""
        codes = view.codes
        if (codes.scale, codes.zero) == (view.scale, view.zero):
            return codes
        other = Tensor(f"{codes.name}*{view.scale:.6g}", codes.shape, view.scale, view.zero)
        return self.emit("reshape", [codes], other)

    def constant(self, name: str) -> Constant:
        """Return a constant.

        Raises:
            UnsupportedError: If the name is computed.
        """
        value = self.value(name)
        if not isinstance(value, Constant):
            raise UnsupportedError("graph", f"'{name}' must be a constant")
        return value

    def target(self, node: Node) -> tuple[str, Tensor, tuple[float, float] | None] | None:
        """Return the codes that a node's only output goes into, by way of at most one Relu or Clip.

        Returns:
            The name of the QuantizeLinear's output, the tensor to make there (without a shape), and the limits of the
            Relu or Clip; None if the output is read as floats.
        """
        name, limits = node.outputs[0], None
        if len(node.outputs) != 1 or name in self.graph.outputs:
            return None
        found = self.readers.get(name, [])
        if len(found) == 1 and found[0].kind in ("Relu", "Clip") and node.kind in ("Conv", "Gemm", "MatMul", "Add"):
            limits = clamp_limits(self, found[0])
            name = found[0].outputs[0]
            found = self.readers.get(name, []) if name not in self.graph.outputs else []
        if len(found) != 1 or found[0].kind != "QuantizeLinear":
            return None
        scale, zero = self.quantization(found[0])
        return found[0].outputs[0], Tensor(found[0].outputs[0], (), scale, zero), limits

    def quantization(self, node: Node) -> tuple[float, int]:
        """Return scale and zero point (as for u8) of an activation's QuantizeLinear or DequantizeLinear."""
        scale = self.constant(node.inputs[1]).values
        zero = self.constant(node.inputs[2]).values if len(node.inputs) > 2 else np.zeros((), np.uint8)
        if scale.size != 1 or zero.size != 1 or zero.dtype not in (np.uint8, np.int8):
            raise UnsupportedError(node.kind, f"'{node.outputs[0]}' is not one scale of 8 bits")
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise UnsupportedError(node.kind, f"'{node.outputs[0]}' has a scale of {scale.reshape(-1)[0]}")
        return float(scale.reshape(())), int(zero.reshape(())) + (128 if zero.dtype == np.int8 else 0)


def clamp_limits(low: Lowering, node: Node) -> tuple[float, float]:
    """Return the limits of a Relu or a Clip."""
    if node.kind == "Relu":
        return 0.0, float(np.finfo(np.float32).max)
    ends = []
    for i, name, default in ((1, "min", np.finfo(np.float32).min), (2, "max", np.finfo(np.float32).max)):
        given = node.inputs[i] if len(node.inputs) > i else ""
        ends.append(float(low.constant(given).values) if given else float(node.attributes.get(name, default)))
    return ends[0], ends[1]
