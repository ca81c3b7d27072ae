"""Layer by layer: what runs on integers, and how far its output is from the float graph's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from qdeploy.core.metrics import Floats, sqnr_db
from qdeploy.export.graph.inner_outputs import open_with_outputs
from qdeploy.export.graph.walk import is_standard
from qdeploy.export.int8.units import MATRIX_OPERATORS

IMAGES = 16


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer that multiplies matrices."""

    name: str
    operator: str
    precision: str
    """int8 or fp32."""
    sqnr_db: float | None
    """SQNR in decibels of the layer's output on validation images, earlier layers' errors included; None if exact."""


def layer_table(fp32: onnx.ModelProto, int8: onnx.ModelProto, pixels_NSSC: NDArray[np.uint8]) -> tuple[LayerRow, ...]:
    """Compare every Conv, Gemm and MatMul of a float graph with the same one of its Q/DQ form."""
    layers = [n for n in fp32.graph.node if is_standard(n, *MATRIX_OPERATORS)]
    made = {o: n for n in int8.graph.node for o in n.output}
    inside = {n.name: n for n in int8.graph.node}
    names = [_surviving(fp32, n.output[0], made) for n in layers]
    ends = [_dequantized(int8, name) for name in names]
    images = pixels_NSSC[:IMAGES]
    before, after = _outputs(fp32, names, images), _outputs(int8, ends, images)
    rows = []
    for layer, a, b in zip(layers, before, after, strict=True):
        first = made.get(inside[layer.name].input[0]) if layer.name in inside else None
        on_integers = first is not None and first.op_type == "DequantizeLinear"
        found = sqnr_db(a, b)
        rows.append(
            LayerRow(
                name=layer.name,
                operator=layer.op_type,
                precision="int8" if on_integers else "fp32",
                sqnr_db=found if np.isfinite(found) else None,
            )
        )
    return tuple(rows)


def _surviving(fp32: onnx.ModelProto, name: str, made: Mapping[str, onnx.NodeProto]) -> str:
    """Follow a layer's output through the activations that a quantized range has made superfluous."""
    while name not in made:
        name = next(n.output[0] for n in fp32.graph.node if name in n.input)
    return name


def _dequantized(int8: onnx.ModelProto, name: str) -> str:
    """Follow a layer's output through its own Q/DQ pair, if it has one."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in int8.graph.node:
        for i in node.input[:1]:
            readers.setdefault(i, []).append(node)
    quantized = next((n for n in readers.get(name, []) if n.op_type == "QuantizeLinear"), None)
    if quantized is None:
        return name
    scale = quantized.input[1]  # a GELU's gate reads the same integers with a scale of its own
    return next(n.output[0] for n in readers[quantized.output[0]] if n.input[1] == scale)


def _outputs(model: onnx.ModelProto, names: list[str], images: NDArray[np.uint8]) -> list[Floats]:
    if not names:
        return []
    return list(open_with_outputs(model, names).run(names, {"image": images}))
