"""An ONNX file from elsewhere, or a float file of qdeploy, as a source."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter

from qdeploy.core.artifact import read_artifact
from qdeploy.core.card import Card, ModelInfo
from qdeploy.core.errors import InputError, NoCardError
from qdeploy.core.files import sha256_of
from qdeploy.core.git import git_commit
from qdeploy.core.metrics import Floats
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.export.graph.entrance import streamline_entrance
from qdeploy.export.sources.source import Reference, Source
from qdeploy.export.sources.trace import OPSET
from qdeploy.runtime.engines.onnxruntime_binding import VERSION, open_binding
from qdeploy.runtime.engines.onnxruntime_options import OnnxRuntimeError

LEAST_OPSET = 13
"""The first with a scale for each channel."""
COLOURS = 3
FOREIGN_TENSOR = ":0"
"""Ending of every tensor that came with a file; ours end otherwise."""
OWN_NODES = tuple(f"model/{kind}" for kind in ("Cast", "Transpose", "Sub", "Mul", "Identity", "Softmax"))
"""Nodes that are put around a foreign graph."""


def onnx_source(
    file: Path, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> tuple[OnnxSource, Preprocessing]:
    """Return an ONNX file as a source, and how images become its input.

    Args:
        file: Made by any tool, or a float file of qdeploy, which says itself how images become its input.
        mean: Taken from each channel of an image in [0, 1]; not of a file of qdeploy.
        std: What that is divided by.

    Raises:
        InputError: If the file is no image classifier with one input and one output.
    """
    card = _own_card(file)
    original = _read(file)
    if card:
        rules, graph = card.preprocessing, _streamlined(original)
        model, training, created, git = card.model, card.origin.training, card.origin.created, card.origin.git
    else:
        rules = Preprocessing(size=_size(original, file), mean=mean, std=std)
        name_nodes_apart(original.graph)
        graph = adopted(original, rules, file)
        model = ModelInfo(
            name=file.stem,
            family="onnx",
            params=_params(original),
            macs=0,  # of a graph they are not counted
            input_size=rules.size,
            num_classes=_classes(graph, rules.size, file),
        )
        training, created, git = {}, datetime.now(timezone.utc).isoformat(timespec="seconds"), git_commit()
    digest = sha256_of(file.read_bytes())
    source = OnnxSource(
        model=model,
        training=training,
        created=created,
        git=git,
        sha256=digest,
        file=file.name,
        original=original,
        adopted=graph,
        rules=rules,
    )
    return source, rules


@dataclass(frozen=True, kw_only=True)
class OnnxSource(Source):
    """A float graph as it came, and in qdeploy's form."""

    file: str
    """Name of the file."""
    original: onnx.ModelProto
    adopted: onnx.ModelProto
    rules: Preprocessing

    @property
    def graph(self) -> onnx.ModelProto:
        """The graph in qdeploy's form."""
        return self.adopted

    def references(self, pixels_NSSC: NDArray[np.uint8]) -> list[Reference]:
        """Run the file as it came; one from elsewhere takes normalised floats and has one output."""
        (image,) = _inputs(self.original)
        if image.type.tensor_type.elem_type == TensorProto.UINT8:
            logits = _run(self.original, "logits", "image", pixels_NSSC)
            return [Reference(form=self.file, output="logits", values=logits)]
        mean, std = (np.asarray(v, np.float32) for v in (self.rules.mean, self.rules.std))
        values = (pixels_NSSC.astype(np.float32) / 255 - mean) / std
        if _channels_first(image):
            values = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
        output = "logits" if _final_softmax(self.original) is None else "probabilities"
        found = _run(self.original, self.original.graph.output[0].name, image.name, values)
        return [Reference(form=self.file, output=output, values=found)]


def adopted(model: onnx.ModelProto, rules: Preprocessing, file: Path) -> onnx.ModelProto:
    """Return a foreign graph in qdeploy's form: uint8 images in, normalised inside, logits and probabilities out.

    Raises:
        InputError: If its operators are too old, or it has no single image input and output.
    """
    copy = _recent(_simplified(model, file), file)
    name_nodes_apart(copy.graph)
    name_tensors_apart(copy.graph)
    graph = copy.graph
    (image,), (output,) = _inputs(copy), graph.output
    softmax = _final_softmax(copy)
    logits = softmax.input[0] if softmax is not None else output.name
    mean = 255.0 * np.asarray(rules.mean, np.float32)
    scale = 1.0 / (255.0 * np.asarray(rules.std, np.float32))
    shape = (1, COLOURS, 1, 1) if _channels_first(image) else (1, 1, 1, COLOURS)
    head = [helper.make_node("Cast", ["image"], ["qd_float"], "model/Cast", to=TensorProto.FLOAT)]
    last = "qd_float"
    if _channels_first(image):
        head.append(helper.make_node("Transpose", [last], ["qd_nchw"], "model/Transpose", perm=[0, 3, 1, 2]))
        last = "qd_nchw"
    head += [
        helper.make_node("Sub", [last, "qd_mean"], ["qd_centred"], "model/Sub"),
        helper.make_node("Mul", ["qd_centred", "qd_scale"], [image.name], "model/Mul"),
    ]
    tail = [
        helper.make_node("Identity", [logits], ["logits"], "model/Identity"),
        helper.make_node("Softmax", [logits], ["probabilities"], "model/Softmax", axis=-1),
    ]
    body = [n for n in graph.node if softmax is None or n.output[0] != softmax.output[0]]
    del graph.node[:]
    graph.node.extend([*head, *body, *tail])
    for name, value in (("qd_mean", mean), ("qd_scale", scale)):
        graph.initializer.append(numpy_helper.from_array(value.reshape(shape), name))
    del graph.input[:]
    del graph.output[:]
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", rules.size, rules.size, 3]))
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", None]) for name in ("logits", "probabilities")
    )
    del graph.value_info[:]
    streamline_entrance(copy)
    result = onnx.shape_inference.infer_shapes(copy)
    onnx.checker.check_model(result)
    return result


def name_nodes_apart(graph: onnx.GraphProto) -> None:
    """Let no two nodes of a foreign graph, and none of ours, have one name: ONNX Runtime refuses such graphs."""
    used = set(OWN_NODES)
    for inside in _with_bodies(graph):
        for i, node in enumerate(inside.node):
            wanted = node.name or f"model/{node.op_type}_{i}"
            numbered = (f"{wanted}_{n}" for n in itertools.count(2))
            node.name = next(name for name in itertools.chain([wanted], numbered) if name not in used)
            used.add(node.name)


def name_tensors_apart(graph: onnx.GraphProto) -> None:
    """Return every tensor of a foreign graph an ending that no name of ours has.

    Ours are ``image``, ``logits``, ``x_scale``, ``x_quantized`` and so on.
    """
    for inside in _with_bodies(graph):
        for names in (names for node in inside.node for names in (node.input, node.output)):
            names[:] = [n and f"{n}{FOREIGN_TENSOR}" for n in names]
        for value in (*inside.initializer, *inside.input, *inside.output, *inside.value_info):
            value.name += FOREIGN_TENSOR
        for sparse in inside.sparse_initializer:
            sparse.values.name += FOREIGN_TENSOR


def _with_bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and the graphs inside it: branches of If, bodies of Loop and Scan."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _with_bodies(inner)


def _classes(graph: onnx.ModelProto, size: int, file: Path) -> int:
    """Run two black images, and count the logits."""
    try:
        return int(_run(graph, "logits", "image", np.zeros((2, size, size, COLOURS), np.uint8)).shape[1])
    except Exception as error:  # ONNX Runtime's errors have no common base of their own
        raise InputError(
            f"{file} cannot be run on 2 images: {str(error).splitlines()[0]}; export it with a dynamic batch"
        ) from error


def _streamlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph of qdeploy as a newer version would have made it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    streamline_entrance(copy)
    return model if copy == model else copy


def _own_card(file: Path) -> Card | None:
    """Return the card of a qdeploy file, or None for one from elsewhere."""
    try:
        card = read_artifact(file).card
    except NoCardError:
        return None
    if card.precision != "fp32":
        raise InputError(f"{file} is {card.precision}; give its fp32 file")
    return card


def _params(model: onnx.ModelProto) -> int:
    return sum(int(np.prod(i.dims)) for i in model.graph.initializer if i.data_type == TensorProto.FLOAT)


def _read(file: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(str(file))
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"{file} cannot be read as ONNX: {str(error).splitlines()[0]}") from error
    if any(n.op_type in ("QuantizeLinear", "DequantizeLinear", "QLinearConv") for n in model.graph.node):
        raise InputError(f"{file} is quantized already; give the float file it was made from")
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and not np.isfinite(numpy_helper.to_array(tensor)).all():
            raise InputError(f"the weights '{tensor.name}' of {file} hold values that are not finite; export it again")
    return model


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    constants = {i.name for i in model.graph.initializer}
    return [i for i in model.graph.input if i.name not in constants]


def _dims(value: onnx.ValueInfoProto) -> list[int]:
    """Return the sizes of a tensor; 0 where they are not fixed."""
    return [d.dim_value for d in value.type.tensor_type.shape.dim]


def _channels_first(image: onnx.ValueInfoProto) -> bool:
    return _dims(image)[1] == COLOURS


def _size(model: onnx.ModelProto, file: Path) -> int:
    inputs, outputs = _inputs(model), model.graph.output
    if len(inputs) != 1 or len(outputs) != 1:
        raise InputError(
            f"{file} has {len(inputs)} inputs and {len(outputs)} outputs; an image classifier with one each is needed"
        )
    dims = _dims(inputs[0])
    sides = (dims[2:] if dims[1] == COLOURS else dims[1:3]) if len(dims) == 4 and COLOURS in (dims[1], dims[3]) else []
    if inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT or not sides or sides[0] != sides[1] or not sides[0]:
        raise InputError(
            f"{file} must take float32 images [batch, 3, S, S] or [batch, S, S, 3] of a fixed size, found "
            f"{[d or 'any' for d in dims]}"
        )
    if dims[0]:
        raise InputError(f"{file} takes batches of {dims[0]} only; export it with a dynamic batch")
    return sides[0]


def _recent(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset >= LEAST_OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # whatever onnx's converter raises from C++
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{file} has opset {opset}, at least {LEAST_OPSET} is needed, and it cannot be converted ({reason}); "
            "export it again with a newer opset"
        ) from error


def _simplified(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """Let ONNX Runtime fold constants and BatchNorms, as its own quantizer wants it."""
    with tempfile.TemporaryDirectory() as folder:
        simple = Path(folder) / "simple.onnx"
        try:
            open_binding(model.SerializeToString(), optimize="basic", keep_optimized=simple)
        except OnnxRuntimeError as error:
            raise InputError(f"ONNX Runtime {VERSION} refuses {file}: {error}") from error
        return onnx.load(str(simple))


def _final_softmax(model: onnx.ModelProto) -> onnx.NodeProto | None:
    (output,) = model.graph.output
    return next((n for n in model.graph.node if n.op_type == "Softmax" and output.name in n.output), None)


def _run(model: onnx.ModelProto, output: str, image: str, values: NDArray[Any]) -> Floats:
    session = open_binding(model.SerializeToString())
    parts = [session.run([output], {image: values[i : i + 64]})[0] for i in range(0, len(values), 64)]
    return np.concatenate(parts).astype(np.float32)
