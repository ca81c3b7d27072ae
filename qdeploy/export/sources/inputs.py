"""How images enter a graph from elsewhere: layout, size, colours, type and range, read off its input.

Every one is handled twice: in numpy, to run the file as it came, and as nodes, to put before its graph.

Array names: N images, S side of an image, H and W of the graph's input, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qdeploy.core.errors import InputError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.export.sources.foreign import ForeignConfig
from qdeploy.runtime.engines.onnxruntime_binding import FAILURES, open_binding
from qdeploy.runtime.engines.onnxruntime_options import OnnxRuntimeError

FLOATS: dict[int, type[np.floating[Any]]] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
}
LUMINANCE = (19595.0, 38470.0, 7471.0)
"""ITU-R 601-2 as Pillow computes it: (19595 R + 38470 G + 7471 B + 32768) // 65536; exact in float32."""
REVERSED = (2, 1, 0)


@dataclass(frozen=True, kw_only=True)
class Entrance:
    """What a graph takes."""

    name: str
    dtype: int
    """A type of ``TensorProto``."""
    channels_first: bool
    channels: int
    """3, or 1 for luminance."""
    height: int
    width: int
    batch: int
    """0 where it is not fixed."""
    bgr: bool

    @property
    def size(self) -> int:
        """Side of the square that an image becomes first."""
        return max(self.height, self.width)

    @property
    def raw(self) -> bool:
        """Whether the graph takes the pixels as they are."""
        return self.dtype == TensorProto.UINT8

    @property
    def square(self) -> bool:
        """Whether nothing is cut off the square."""
        return self.height == self.width

    def said(self) -> list[str]:
        """Return what a user should know of it."""
        lines = []
        if not self.square:
            lines.append(
                f"the file takes images of {self.height} x {self.width}: the centre of the square of {self.size} "
                "pixels is cut out inside the graph"
            )
        if self.channels == 1:
            lines.append("the file takes grey images: the luminance is computed inside the graph")
        return lines


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that are no weights."""
    constants = {i.name for i in model.graph.initializer}
    return [i for i in model.graph.input if i.name not in constants]


def read_entrance(model: onnx.ModelProto, config: ForeignConfig, file: Path) -> Entrance:
    """Find the input of images, and what it takes.

    Raises:
        InputError: If there is none, or an option is missing that decides.
    """
    inputs = inputs_of(model)
    if len(inputs) != 1:
        names = ", ".join(i.name for i in inputs)
        raise InputError(
            f"{file} must have one input, the images",
            found=f"{len(inputs)}: {names}" if inputs else "none",
            fix="export it with the others as constants" if inputs else "export it with the images as its input",
        )
    tensor = inputs[0].type.tensor_type
    dims = [max(0, d.dim_value) for d in tensor.shape.dim]  # some tools write -1 for any
    if tensor.elem_type not in (*FLOATS, TensorProto.UINT8):
        kind = TensorProto.DataType.Name(tensor.elem_type).lower() if tensor.elem_type else "no tensor"
        raise InputError(
            f"{file} must take images as uint8, float16, float32 or float64",
            found=kind,
            fix="export it with such an input, followed by a Cast",
        )
    if _says_no_channels(dims, shaped=tensor.HasField("shape")):
        dims = _found_by_running(model, inputs[0], [*dims, 0, 0, 0, 0][:4], config.size, file)
    layout = _layout(dims)
    if layout is None:
        raise InputError(
            f"{file} must take images [batch, C, H, W] or [batch, H, W, C] of 3 or 1 channels",
            found=str([d or "any" for d in dims]).replace("'", "") if dims else "no shape",
        )
    height, width = (dims[2], dims[3]) if layout else (dims[1], dims[2])
    if not (height and width) and config.size is None:
        raise InputError(f"{file} takes images of any size", fix="say with `size` which is right")
    if config.size is not None and {height, width} - {0, config.size}:
        raise InputError(f"{file} takes images of {height} x {width} only", found=f"`size={config.size}`")
    return Entrance(
        name=inputs[0].name,
        dtype=tensor.elem_type,
        channels_first=layout,
        channels=dims[1] if layout else dims[3],
        height=height or config.size or 0,
        width=width or config.size or 0,
        batch=dims[0],
        bgr=config.colours == "bgr",
    )


def _says_no_channels(dims: list[int], *, shaped: bool) -> bool:
    """Tell whether an input may be a batch of images, and nothing says where its channels are."""
    return not shaped or (len(dims) == 4 and _layout(dims) is None and 0 in (dims[1], dims[3]))


def _found_by_running(
    model: onnx.ModelProto, image: onnx.ValueInfoProto, dims: list[int], size: int | None, file: Path
) -> list[int]:
    """Return the axes of an input that says too little of them: those with which the graph can be run.

    Raises:
        InputError: If none can, or several can, or no size is given.
    """
    if size is None and not (dims[2] and (dims[1] or dims[3])):
        raise InputError(f"{file} takes images of any size", fix="say with `size` which is right")
    try:
        session = open_binding(model.SerializeToString(), optimize="none")
    except OnnxRuntimeError as error:
        raise InputError(f"ONNX Runtime refuses {file}: {error}") from error
    runs = []
    for channels in (3, 1):
        for wanted in ([channels, size, size], [size, size, channels]):
            axes = [dims[0], *(known or free or 0 for known, free in zip(dims[1:], wanted, strict=True))]
            fits = axes[1] == channels if wanted[0] == channels else axes[3] == channels
            if fits and all(axes[1:]) and axes not in runs and _takes(session, image, axes):
                runs.append(axes)
    if len(runs) != 1:
        found = " and ".join(str(["any", *axes[1:]]).replace("'", "") for axes in runs) or "none"
        raise InputError(
            f"{file} says nothing of its channels, and one layout must be the only one that it can be run with",
            found=found,
            fix="export it with the axes of its images",
        )
    return runs[0]


def _takes(session: ort.InferenceSession, image: onnx.ValueInfoProto, axes: list[int]) -> bool:
    kind = image.type.tensor_type.elem_type
    pixels = np.zeros([axes[0] or 1, *axes[1:]], FLOATS.get(kind, np.uint8))
    try:
        session.run(None, {image.name: pixels})
    except FAILURES:
        return False
    return True


def _layout(dims: list[int]) -> bool | None:
    """Return whether channels come first; None if it is no batch of images."""
    if len(dims) != 4:
        return None
    for colours in (3, 1):
        if dims[1] == colours and (colours == 3 or dims[3] != 3):
            return True
        if dims[3] == colours:
            return False
    return None


def rules_for(entrance: Entrance, config: ForeignConfig, file: Path) -> Preprocessing:
    """Return how an image becomes the uint8 square before the graph, and its normalisation.

    Raises:
        InputError: If a normalisation is given for a graph that takes pixels as they are, or one for each channel
            for a graph with a single one.
    """
    given = [name for name in ("mean", "std") if getattr(config, name) is not None]
    if entrance.raw and given:
        raise InputError(f"{file} takes uint8 pixels as they are: `{given[0]}` cannot be heeded", fix="leave it out")
    if entrance.channels == 1:
        for name in given:
            values = getattr(config, name)
            if len(set(values)) > 1:
                raise InputError(
                    f"{file} takes one channel: `{name}` must be one number",
                    found=", ".join(f"{v:g}" for v in values),
                )
        if entrance.bgr:
            raise InputError(f"{file} takes one channel: `colours=bgr` means nothing", fix="leave it out")
    if entrance.raw:
        return Preprocessing(size=entrance.size, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    mean, std = config.normalisation(plain=entrance.channels == 1)
    return Preprocessing(size=entrance.size, mean=mean, std=std)


def values_for(entrance: Entrance, rules: Preprocessing, pixels_NSSC: NDArray[np.uint8]) -> NDArray[Any]:
    """Return what the file as it came takes for such pixels."""
    top, left = _margins(entrance)
    values: NDArray[Any] = pixels_NSSC[:, top : top + entrance.height, left : left + entrance.width]
    if entrance.channels == 1:
        values = ((values.astype(np.int64) @ np.asarray(LUMINANCE, np.int64) + 32768) >> 16)[..., None]
    if not entrance.raw:
        mean, std = (np.asarray(v[: entrance.channels], np.float32) for v in (rules.mean, rules.std))
        values = (values.astype(np.float32) / 255 - mean) / std
    if entrance.bgr:
        values = values[..., ::-1]
    if entrance.channels_first:
        values = values.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(values, np.uint8 if entrance.raw else FLOATS[entrance.dtype])


def _margins(entrance: Entrance) -> tuple[int, int]:
    return (entrance.size - entrance.height) // 2, (entrance.size - entrance.width) // 2


class _Chain:
    """Nodes one after the other, each with its constants."""

    def __init__(self, start: str) -> None:
        self.last = start
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, kind: str, result: str, constants: dict[str, NDArray[Any]] | None = None, **attributes: Any) -> None:
        """Add a node that reads the last tensor and some constants."""
        for name, value in (constants or {}).items():
            self.constants.append(numpy_helper.from_array(value, name))
        inputs = [self.last, *(constants or {})]
        self.nodes.append(helper.make_node(kind, inputs, [result], f"model/{kind}", **attributes))
        self.last = result


def entrance_nodes(entrance: Entrance, rules: Preprocessing) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return the nodes from ``image``, uint8 ``[N, S, S, 3]``, to the graph's input, and their constants."""
    chain, channels = _Chain("image"), entrance.channels
    if not entrance.square:
        top, left = _margins(entrance)
        ends = {"starts": [top, left], "ends": [top + entrance.height, left + entrance.width], "axes": [1, 2]}
        chain.add("Slice", "qd_cut", {f"qd_{k}": np.asarray(v, np.int64) for k, v in ends.items()})
    if channels == 1 or not entrance.raw:
        chain.add("Cast", "qd_float", to=TensorProto.FLOAT)
    if channels == 1:
        weights = np.asarray(LUMINANCE, np.float32).reshape(1, 1, 1, 3) / np.float32(65536)
        chain.add("Mul", "qd_weighted", {"qd_luminance": weights})
        chain.add("ReduceSum", "qd_sum", {"qd_last": np.asarray([3], np.int64)}, keepdims=1)
        chain.add("Add", "qd_rounded", {"qd_half": np.asarray([0.5], np.float32)})
        chain.add("Floor", "qd_grey")
    if entrance.channels_first:
        chain.add("Transpose", "qd_nchw", perm=[0, 3, 1, 2])
    if not entrance.raw:
        shape = (1, channels, 1, 1) if entrance.channels_first else (1, 1, 1, channels)
        mean = 255.0 * np.asarray(rules.mean[:channels], np.float32)
        scale = 1.0 / (255.0 * np.asarray(rules.std[:channels], np.float32))
        kind = "Mul" if channels == 3 else "Div"  # a second Mul would have the name of the first
        chain.add("Sub", "qd_centred", {"qd_mean": mean.reshape(shape)})
        factor = scale if kind == "Mul" else 1 / scale
        chain.add(kind, "qd_normalised", {"qd_scale": factor.reshape(shape).astype(np.float32)})
    if entrance.bgr:
        axis = 1 if entrance.channels_first else 3
        chain.add("Gather", "qd_bgr", {"qd_order": np.asarray(REVERSED, np.int64)}, axis=axis)
    _finish(chain, entrance)
    chain.nodes[-1].output[0] = entrance.name
    return chain.nodes, chain.constants


def _finish(chain: _Chain, entrance: Entrance) -> None:
    """Bring the values into the graph's own type."""
    wanted = entrance.dtype
    if wanted in (TensorProto.FLOAT16, TensorProto.DOUBLE) or (entrance.raw and entrance.channels == 1):
        chain.add("Cast", "qd_typed", to=wanted)
        chain.nodes[-1].name = "model/CastTyped"
    elif not chain.nodes:
        chain.add("Identity", "qd_same")
        chain.nodes[-1].name = "model/IdentityImage"
