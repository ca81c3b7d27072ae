"""Graphs that normalise their images themselves: said where ImageNet's mean and std would be applied as well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qdeploy.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from qdeploy.export import ForeignConfig
from qdeploy.export.sources.onnx_file import onnx_source
from tests.foreign.build import SIZE, Net, tensor


def three(values: tuple[float, ...], last: bool = False) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.asarray(values).reshape((1, 1, 1, 3) if last else (1, 3, 1, 1))


def keras(net: Net) -> str:
    """Rescaling and Normalization, then NCHW."""
    scaled = net.node("Mul", "x", net.constant(1 / 255))
    centred = net.node("Sub", scaled, net.constant(three(IMAGENET_MEAN, last=True)))
    return net.node(
        "Transpose", net.node("Div", centred, net.constant(three(IMAGENET_STD, last=True))), perm=[0, 3, 1, 2]
    )


def torch_module(net: Net) -> str:
    centred = net.node("Sub", "x", net.constant(three(IMAGENET_MEAN)))
    return net.node("Div", net.node("Identity", centred), net.constant(three(IMAGENET_STD)))


def caffe(net: Net) -> str:
    return net.node("Sub", "x", net.constant(three((123.7, 116.8, 103.9))))


def caffe_and_scaled(net: Net) -> str:
    return net.node("Div", caffe(net), net.constant(three((58.4, 57.1, 57.4))))


def scaled_up(net: Net) -> str:
    bytes_of_it = net.node("Mul", "x", net.constant(255.0))
    return net.node("Sub", bytes_of_it, net.constant(three((123.7, 116.8, 103.9))))


def to_plus_minus_one(net: Net) -> str:
    factor = net.node("Constant", value=tensor(1 / 127.5))
    return net.node("Add", net.node("Mul", net.node("Cast", "x", to=TensorProto.FLOAT), factor), net.constant(-1.0))


def from_half(net: Net) -> str:
    return net.node("Mul", net.node("Sub", "x", net.constant(0.5)), net.constant(2.0))


def none(net: Net) -> str:
    return net.node("Identity", "x")


def batch_norm(net: Net) -> str:
    return net.node("BatchNormalization", "x", *(net.constant(net.rng.uniform(0.5, 2, 3)) for _ in range(4)))


def a_map(net: Net) -> str:
    return net.node("Mul", "x", net.weight(1, 3, SIZE, SIZE))


def written(folder: Path, form: Callable[[Net], str]) -> Path:
    net = Net(3)
    net.image = form(net)
    stem = net.stem()
    net.image = "x"
    net.head(stem)
    model = net.model(check=False)
    if form is keras:
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", SIZE, SIZE, 3]))
    onnx.save(model, folder / "theirs.onnx")
    return folder / "theirs.onnx"


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (keras, "(Mul, Sub, Div), as if it took pixels from 0 to 255, .* give `range=0-255`"),
        (torch_module, "(Sub, Div), as if it took pixels from 0 to 1, .* give `mean=0` and `std=1`"),
        (to_plus_minus_one, "(Mul, Add), as if it took pixels from 0 to 255, .* give `range=0-255`"),
        (caffe, "(Sub), as if it took pixels from 0 to 255, .* give `range=0-255`"),
        (caffe_and_scaled, "(Sub, Div), as if it took pixels from 0 to 255, .* give `range=0-255`"),
        (scaled_up, "(Mul, Sub), as if it took pixels from 0 to 1, .* give `mean=0` and `std=1`"),
        (from_half, "(Sub, Mul), as if it took pixels from 0 to 1, .* give `mean=0` and `std=1`"),
        (none, ""),
        (batch_norm, ""),
        (a_map, ""),
    ],
)
def test_what_a_graph_does_itself_is_said_and_not_if_it_was_heeded(
    form: Callable[[Net], str], says: str, tmp_path: Path
) -> None:
    file = written(tmp_path, form)
    notes = [n for n in onnx_source(file)[0].notes if "begins by normalising" in n]
    assert len(notes) == bool(says)
    for part in says.split(" .* ") if says else []:
        assert part in notes[0]
    zero, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    for heeded in (ForeignConfig(range="0-255"), ForeignConfig(mean=zero, std=one)):
        assert not any("begins by normalising" in n for n in onnx_source(file, heeded)[0].notes)
