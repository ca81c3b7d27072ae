"""Bias correction: takes the mean error of rounded weights out of each layer's output.

Rounding adds ``(W_q - W) x`` to the output. Its mean over the data is ``(W_q - W) E[x]``, a constant per output
channel, which the bias can take back. Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization
and Bias Correction", 4.2; here E[x] is measured on images.

Padding is ignored: the border is counted as if it were like the rest of its channel.

Array names: N images, S height and width, O output channels, I input channels of a group, C input channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from qdeploy.core.errors import InputError
from qdeploy.export.graph.inner_outputs import open_with_outputs
from qdeploy.export.graph.walk import FreeNames, is_standard, read_inside

BATCH = 8
"""Images per run: the inputs of all layers of a batch are in memory at once."""

Floats = NDArray[np.float32]


def channel_means(model: onnx.ModelProto, pixels_NSSC: NDArray[np.uint8]) -> dict[str, Floats]:
    """Run images through a float graph and average the input of each Conv and Gemm per channel.

    Args:
        model: A graph with one uint8 input ``[batch, S, S, 3]``.
        pixels_NSSC: The calibration images, at least one.

    Returns:
        For each tensor that a Conv or Gemm reads, ``[C]``; axis 1 holds the channels. A channel that has no values, or
        some that are not finite, counts as 0: there is nothing to correct.

    Raises:
        InputError: If there are no images.
    """
    if not len(pixels_NSSC):
        raise InputError("bias correction needs at least 1 calibration image, found 0; give some of the training split")
    constants = {i.name for i in model.graph.initializer}
    names = sorted({n.input[0] for n in _layers(model.graph)} - constants)
    if not names:
        return {}
    session = open_with_outputs(model, names)
    sums: dict[str, NDArray[np.float64]] = {}
    counts = dict.fromkeys(names, 0)
    for start in range(0, len(pixels_NSSC), BATCH):
        values = session.run(names, {session.get_inputs()[0].name: pixels_NSSC[start : start + BATCH]})
        for name, value in zip(names, values, strict=True):
            axes = tuple(axis for axis in range(value.ndim) if axis != 1)
            with np.errstate(invalid="ignore"):  # inf - inf
                sums[name] = sums.get(name, np.zeros(1)) + value.sum(axis=axes, dtype=np.float64)
            counts[name] += value.size // max(value.shape[1], 1)
    means = {name: np.asarray(sums[name] / max(counts[name], 1)).astype(np.float32) for name in names}
    return {name: np.where(np.isfinite(mean), mean, np.float32(0)) for name, mean in means.items()}


def correct_biases(
    model: onnx.ModelProto,
    channel_means: Mapping[str, Floats],
    float_nodes: Iterable[str] = (),
    *,
    seven_bit_weights: bool = False,
) -> onnx.ModelProto:
    """Return a copy whose biases expect the rounding of the weights.

    Apply it right before quantizing the same weights: int8, symmetric, one scale per output channel. A layer without
    a bias gets one.

    Args:
        model: The float graph; it is not changed.
        channel_means: Mean of each input channel of the layers' input tensors, ``[C]``.
        float_nodes: Names of nodes that stay in float, whose weights are not rounded.
        seven_bit_weights: Whether they are rounded to -64 ... 64 instead.

    Raises:
        InputError: If the means of a layer's input are missing or of another length.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {i.name: i for i in copy.graph.initializer}
    stay = set(float_nodes)
    for node in _layers(copy.graph):
        bias = node.input[2] if len(node.input) > 2 else ""
        if node.name in stay or node.input[1] not in stored or (bias and bias not in stored):
            continue
        means = channel_means.get(node.input[0])
        if means is None:
            raise InputError(f"bias correction has no channel means of '{node.input[0]}', the input of {node.name}")
        weight_OIK = _weight(node, onnx.numpy_helper.to_array(stored[node.input[1]]))
        if not weight_OIK.size:
            continue
        error_OI = (rounded(weight_OIK, seven_bit_weights).astype(np.float64) - weight_OIK).sum(axis=2)
        shift_O = _mean_error(error_OI, np.asarray(means), int(_attribute(node, "group", 1)), node.name)
        beta = _attribute(node, "beta", 1.0)
        before = onnx.numpy_helper.to_array(stored[bias]) if bias and beta else np.zeros(1, np.float32)
        after = before.astype(np.float64).reshape(-1) - shift_O * (_attribute(node, "alpha", 1.0) / (beta or 1.0))
        _set_bias(copy.graph, node, after.astype(np.float32))
    return copy


def biases_of(model: onnx.ModelProto) -> dict[str, Floats]:
    """Return the bias of each Conv and Gemm that has one, by the node's name."""
    stored = {i.name: i for i in model.graph.initializer}
    return {
        node.name: onnx.numpy_helper.to_array(stored[node.input[2]])
        for node in _layers(model.graph)
        if len(node.input) > 2 and node.input[2] in stored
    }


def rounded(weight_OIK: Floats, seven_bits: bool = False) -> Floats:
    """Round weights as ONNX Runtime's quantizer does: symmetric integers, a scale per output channel.

    The scale is the largest absolute value / 127 (seven bits: / 64), in float32; that of a row of zeros is 1.
    """
    absmax_O = np.abs(weight_OIK).max(axis=(1, 2), keepdims=True).astype(np.float64)
    scale_O = (absmax_O / (64 if seven_bits else 127)).astype(np.float32)
    scale_O[scale_O < np.finfo(np.float32).tiny] = 1.0
    return np.asarray(np.round(weight_OIK / scale_O) * scale_O, np.float32)


def _layers(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [
        n for n in graph.node if is_standard(n, "Conv") or (is_standard(n, "Gemm") and not _attribute(n, "transA", 0))
    ]


def _weight(node: onnx.NodeProto, weight: Floats) -> Floats:
    """Bring a weight to ``[O, I, K]``, with K positions of the kernel."""
    if node.op_type == "Gemm" and not _attribute(node, "transB", 0):
        weight = weight.T
    return weight.reshape(*weight.shape[:2], -1)


def _mean_error(error_OI: NDArray[np.float64], means_C: Floats, groups: int, layer: str) -> NDArray[np.float64]:
    """Return ``(W_q - W) E[x]``, ``[O]``."""
    outputs, inputs = error_OI.shape
    if means_C.shape != (inputs * groups,):
        raise InputError(
            f"bias correction of {layer} needs the means of {inputs * groups} channels, found shape {means_C.shape}; "
            "measure them on this graph"
        )
    means_OI = np.repeat(means_C.reshape(groups, inputs), outputs // groups, axis=0)
    return np.asarray((error_OI * means_OI).sum(axis=1))


def _set_bias(graph: onnx.GraphProto, node: onnx.NodeProto, bias_O: Floats) -> None:
    """Set a bias of its own for a node, one that no other node reads."""
    old = node.input[2] if len(node.input) > 2 else ""
    name = FreeNames(graph)(f"{node.input[1]}.corrected_bias")
    graph.initializer.append(onnx.numpy_helper.from_array(bias_O, name))
    del node.input[2:]
    node.input.append(name)
    if old and old not in read_inside(graph) and not any(old in n.input for n in graph.node):
        graph.initializer.remove(next(i for i in graph.initializer if i.name == old))


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)
