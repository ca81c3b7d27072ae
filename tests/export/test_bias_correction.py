from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from qdeploy.core.errors import InputError
from qdeploy.export.int8.bias_correction import channel_means, correct_biases

MODEL = """
<ir_version: 10, opset_import: ["" : 20]>
net (uint8[batch, 8, 8, 3] image) => (float[batch, 4] logits)
{
    f = Cast <to = 1> (image)
    x = Transpose <perm = [0, 3, 1, 2]> (f)
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    r = Relu (a)
    d = Conv <group = 3> (r, w2, b2)
    p = GlobalAveragePool (d)
    v = Flatten (p)
    logits = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (v, w3, b3)
}
"""
SHAPES = {"w1": (6, 3, 3, 3), "w2": (9, 2, 3, 3), "b2": (9,), "w3": (4, 9), "b3": (4,)}
Floats = NDArray[np.float32]


def net(text: str = MODEL, **changed: tuple[int, ...]) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        node.name = f"{node.output[0]}/{node.op_type}"
    rng = np.random.default_rng(0)
    for name, shape in {**SHAPES, **changed}.items():
        value = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


def images(count: int = 20) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def tensors(model: onnx.ModelProto, names: list[str], pixels: NDArray[np.uint8]) -> list[Floats]:
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    del wide.graph.output[:]
    wide.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names)
    session = ort.InferenceSession(wide.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(names, {"image": pixels})]


def stored(model: onnx.ModelProto, output: str, position: int) -> Floats:
    """Give the weight (1) or bias (2) of the node that makes a tensor."""
    node = next(n for n in model.graph.node if n.output[0] == output)
    return numpy_helper.to_array(next(i for i in model.graph.initializer if i.name == node.input[position]))


def by_hand(weight: Floats, steps: int = 127) -> Floats:
    """Round each output channel alone, with Python numbers."""
    rows = []
    for row in weight:
        scale = np.float32(float(np.abs(row).max()) / steps)
        rows.append(np.round(row / scale) * scale)
    return np.stack(rows)


def with_weights(model: onnx.ModelProto, steps: int = 127, **names: str) -> onnx.ModelProto:
    """Put rounded weights into a graph."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for initializer in copy.graph.initializer:
        if initializer.name in ("w1", "w2", "w3"):
            value = by_hand(numpy_helper.to_array(initializer), steps)
            initializer.CopyFrom(numpy_helper.from_array(value, initializer.name))
    return copy


def test_the_means_are_those_of_all_images_at_once() -> None:
    model, pixels = net(), images()
    means = channel_means(model, pixels)
    assert sorted(means) == ["r", "v", "x"]
    x, r, v = tensors(model, ["x", "r", "v"], pixels)
    assert np.allclose(means["x"], pixels.reshape(-1, 3).mean(axis=0), rtol=1e-6)
    assert np.allclose(means["x"], x.mean(axis=(0, 2, 3)), rtol=1e-5)
    assert np.allclose(means["r"], r.mean(axis=(0, 2, 3)), rtol=1e-5)
    assert np.allclose(means["v"], v.mean(axis=0), rtol=1e-5)


def test_the_shift_is_the_mean_error_of_the_rounded_weights() -> None:
    model = net()
    means = channel_means(model, images())
    after = correct_biases(model, means)
    d1 = by_hand(stored(model, "a", 1)) - stored(model, "a", 1)
    d2 = by_hand(stored(model, "d", 1)) - stored(model, "d", 1)
    d3 = by_hand(stored(model, "logits", 1)) - stored(model, "logits", 1)
    shift_1 = [sum(d1[o, i].sum() * means["x"][i] for i in range(3)) for o in range(6)]
    shift_2 = [sum(d2[o, i].sum() * means["r"][2 * (o // 3) + i] for i in range(2)) for o in range(9)]
    assert np.allclose(stored(after, "a", 2), -np.asarray(shift_1), rtol=1e-4, atol=1e-6)
    assert np.allclose(stored(after, "d", 2), stored(model, "d", 2) - np.asarray(shift_2), rtol=1e-4, atol=1e-6)
    expected = stored(model, "logits", 2) - d3 @ means["v"] * 0.5 / 2.0
    assert np.allclose(stored(after, "logits", 2), expected, rtol=1e-4, atol=1e-6)
    onnx.checker.check_model(after)
    assert len(model.graph.initializer) == 5  # the given graph is not changed


def test_the_mean_output_of_a_layer_without_padding_is_right_again() -> None:
    model, pixels = net(MODEL.replace("<pads = [1, 1, 1, 1]>", "")), images(64)
    after = correct_biases(model, channel_means(model, pixels))
    (exact,), (plain,), (corrected,) = (
        tensors(m, ["a"], pixels) for m in (model, with_weights(model), with_weights(after))
    )
    error = np.abs(plain.mean(axis=(0, 2, 3)) - exact.mean(axis=(0, 2, 3))).max()
    left = np.abs(corrected.mean(axis=(0, 2, 3)) - exact.mean(axis=(0, 2, 3))).max()
    assert error > 0.1
    assert left < 0.02 * error


def test_weights_are_rounded_as_the_quantizer_rounds_them() -> None:
    from onnxruntime.quantization import QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

    from qdeploy.export.int8.bias_correction import rounded

    for seven_bits in (False, True):
        model = net()
        weight = stored(model, "d", 1)
        ranges = {
            name: TensorData(lowest=np.float32(-9), highest=np.float32(9))
            for node in model.graph.node
            for name in node.output
        }
        options = {"WeightSymmetric": True, "QuantizeBias": True}
        tensors_range = TensorsData(CalibrationMethod.MinMax, ranges)
        kinds = QuantType.QInt8, QuantType.QUInt8
        quantizer = QDQQuantizer(model, True, seven_bits, *kinds, tensors_range, [], [], ["Conv"], options)
        quantizer.quantize_model()
        made = {i.name: numpy_helper.to_array(i) for i in quantizer.model.model.graph.initializer}
        expected = made["w2_quantized"].astype(np.float32) * made["w2_scale"].reshape(-1, 1, 1, 1)
        assert np.array_equal(rounded(weight.reshape(9, 2, 9), seven_bits).reshape(weight.shape), expected)


def test_seven_bit_weights_are_corrected_by_their_own_error() -> None:
    model = net()
    means = channel_means(model, images())
    after = correct_biases(model, means, seven_bit_weights=True)
    d1 = by_hand(stored(model, "a", 1), 64) - stored(model, "a", 1)
    assert np.allclose(stored(after, "a", 2), -np.einsum("oihw,i->o", d1, means["x"]), rtol=1e-4, atol=1e-6)


def test_a_float_node_keeps_its_bias_and_a_shared_bias_is_not_shared_afterwards() -> None:
    text = MODEL.replace("(x, w1)", "(x, w1, b2)")
    model = net(text, w1=(9, 3, 3, 3), w2=(9, 3, 3, 3))
    after = correct_biases(model, channel_means(model, images()), float_nodes=["a/Conv"])
    assert np.array_equal(stored(after, "a", 2), stored(model, "a", 2))
    assert not np.array_equal(stored(after, "d", 2), stored(model, "d", 2))


def test_two_layers_that_share_a_weight_get_a_bias_each() -> None:
    text = MODEL.replace("r = Relu (a)", "e = Conv <pads = [1, 1, 1, 1]> (a, w1)\n r = Relu (e)")
    model = net(text, w1=(3, 3, 3, 3), w2=(9, 1, 3, 3))
    after = correct_biases(model, channel_means(model, images()))
    onnx.checker.check_model(after)
    assert not np.allclose(stored(after, "a", 2), stored(after, "e", 2))


def test_a_gemm_without_transposition_and_bias() -> None:
    text = MODEL.replace("<alpha = 0.5, beta = 2.0, transB = 1> (v, w3, b3)", "(v, w3)")
    model = net(text, w3=(9, 4))
    means = channel_means(model, images())
    after = correct_biases(model, means)
    error = by_hand(stored(model, "logits", 1).T) - stored(model, "logits", 1).T
    assert np.allclose(stored(after, "logits", 2), -error @ means["v"], rtol=1e-4, atol=1e-6)


def test_means_that_do_not_fit_are_refused() -> None:
    model = net()
    means = channel_means(model, images())
    with pytest.raises(InputError, match="no channel means of 'r', the input of d/Conv"):
        correct_biases(model, {"x": means["x"]})
    with pytest.raises(InputError, match=r"d/Conv needs the means of 6 channels, found shape \(3,\)"):
        correct_biases(model, {**means, "r": means["x"]})
    with pytest.raises(InputError, match="at least 1 calibration image, found 0"):
        channel_means(model, images()[:0])
