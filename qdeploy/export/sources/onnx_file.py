"""The export of an ONNX file from elsewhere: the same checks, INT8, guard and card."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter

from qdeploy.core.artifact import Card, read_artifact
from qdeploy.core.errors import InputError, NoCardError
from qdeploy.core.files import sha256_of
from qdeploy.core.metrics import Floats, measure
from qdeploy.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from qdeploy.data.catalog import load_dataset
from qdeploy.export.config import ExportConfig, Note, Progress
from qdeploy.export.finish import Made, Work, finish, first_card, record_without_run
from qdeploy.export.graph.entrance import streamline_entrance
from qdeploy.export.graph.parity import FP32_TOLERANCE, require_equal
from qdeploy.export.pipeline import FLOAT_GOLDEN_DB, export_source, no_progress, silent
from qdeploy.export.sources.trace import OPSET
from qdeploy.export.verdict import ExportReport, Step
from qdeploy.runtime.engines.onnxruntime_binding import VERSION, open_binding
from qdeploy.runtime.engines.onnxruntime_options import OnnxRuntimeError

LEAST_OPSET = 13
"""The first with a scale for each channel."""
COLOURS = 3


def export_onnx(
    file: Path,
    data: str,
    out: Path,
    *,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    config: ExportConfig | None = None,
    note: Note = silent,
    tick: Progress = no_progress,
) -> ExportReport:
    """Export a float ONNX file, made by any tool, with the same checks, INT8 and card as a run.

    Args:
        file: An image classifier: one float32 input ``[batch, 3, S, S]`` or ``[batch, S, S, 3]``, the batch not
            fixed, and one output of logits or probabilities ``[batch, K]``. Or a float file of qdeploy, which says
            itself how images become its input.
        data: A data set as ``qdeploy train`` takes it, whose K classes in their order are those of the output.
        out: The export's folder.
        mean: What is taken from each channel of an image in [0, 1].
        std: What that is divided by.
        config: What to make.
        note: Called with a line after each step.
        tick: Given a step's name, gives what is called with the number of its parts that are done and their total.

    Raises:
        InputError: If the file is no such graph, or the data do not fit it.
        VerdictError: If a step's parity is missed.
    """
    card = _own_card(file)
    model = _read(file)
    rules = card.preprocessing if card else Preprocessing(size=_size(model, file), mean=mean, std=std)
    dataset = load_dataset(data, rules)
    source = OnnxSource(file, model, _streamlined(model) if card else adopted(model, rules, file))
    classes = source.classes(rules.size)
    if classes != len(dataset.classes):
        raise InputError(f"{file} tells {classes} classes apart, {data} has {len(dataset.classes)}; give its own data")
    macs = 0  # of a graph they are not counted
    record = _record_of_card(card) if card else record_without_run(file.stem, "onnx", _params(model), macs, dataset)
    return export_source(source, record, lambda: dataset, config, out, note, tick)


@dataclass(frozen=True)
class OnnxSource:
    """A float graph as it came, and in qdeploy's form."""

    file: Path
    original: onnx.ModelProto
    graph: onnx.ModelProto

    def classes(self, size: int) -> int:
        """Run two black images, and count the logits."""
        try:
            return int(_run(self.graph, ["logits"], np.zeros((2, size, size, COLOURS), np.uint8)).shape[1])
        except Exception as error:  # ONNX Runtime's errors have no common base of their own
            raise InputError(
                f"{self.file} cannot be run on 2 images: {str(error).splitlines()[0]}; export it with a dynamic batch"
            ) from error

    def float_step(self, work: Work) -> tuple[Made, tuple[Step, ...]]:
        """Give the graph its card; its outputs are compared with those of the file as it came."""
        rules, pixels = work.dataset.preprocessing, work.parity_pixels
        steps: tuple[Step, ...] = ()
        if self.graph is not self.original:
            same, outputs = self._outputs(pixels, rules)
            parity = measure(outputs, _run(self.graph, [same], pixels))
            require_equal(f"{self.file.name} to fp32", parity, FP32_TOLERANCE)
            work.note(f"fp32: {same} within {parity.max_abs:.1e} of {self.file.name} on {parity.n} images")
            steps = (Step(name=f"{self.file.name} to fp32", parity=parity),)
        card = first_card(work, sha256_of(self.file.read_bytes()))
        logits = _run(self.graph, ["logits"], pixels)
        return finish(work, self.graph, card, logits, "model.fp32.onnx", FLOAT_GOLDEN_DB), steps

    def finetuned(self, work: Work) -> None:
        """Give nothing: a graph cannot be trained here."""

    def _outputs(self, pixels: NDArray[np.uint8], rules: Preprocessing) -> tuple[str, Floats]:
        """Run the file as it came; a foreign one takes normalised floats and has one output. Tells which."""
        (image,) = _inputs(self.original)
        if image.type.tensor_type.elem_type == TensorProto.UINT8:
            return "logits", _run(self.original, ["logits"], pixels)
        same = "logits" if _final_softmax(self.original) is None else "probabilities"
        mean, std = (np.asarray(v, np.float32) for v in (rules.mean, rules.std))
        values = (pixels.astype(np.float32) / 255 - mean) / std
        if _channels_first(image):
            values = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
        session = open_binding(self.original.SerializeToString())
        return same, np.asarray(session.run(None, {image.name: values})[0], np.float32)


def adopted(model: onnx.ModelProto, rules: Preprocessing, file: Path) -> onnx.ModelProto:
    """Give a foreign graph in qdeploy's form: uint8 images in, normalised inside, logits and probabilities out.

    Raises:
        InputError: If its operators are too old, or it has no single image input and output.
    """
    copy = _recent(_simplified(model, file), file)
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
    for i, node in enumerate(body):
        node.name = node.name or f"model/{node.op_type}_{i}"
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


def _streamlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give a graph of qdeploy as a newer version would have made it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    streamline_entrance(copy)
    return model if copy == model else copy


def _own_card(file: Path) -> Card | None:
    """Give the card of a qdeploy file, or None for one from elsewhere."""
    try:
        card = read_artifact(file).card
    except NoCardError:
        return None
    if card.precision != "fp32":
        raise InputError(f"{file} is {card.precision}; give its fp32 file")
    return card


def _record_of_card(card: Card) -> dict[str, Any]:
    """Describe the run that a qdeploy file comes from, as its ``run.json`` did."""
    lineage = card.lineage
    return {
        "created": lineage["trained"],
        "config": lineage["training"],
        "git": lineage["git"],
        "model": card.model,
        "dataset": {"images": lineage["dataset"]["images"]},
    }


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
            raise InputError(f"the weights '{tensor.name}' of {file} hold values that are no numbers; export it again")
    return model


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    constants = {i.name for i in model.graph.initializer}
    return [i for i in model.graph.input if i.name not in constants]


def _dims(value: onnx.ValueInfoProto) -> list[int]:
    """Give the sizes of a tensor; 0 where they are not fixed."""
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


def _run(model: onnx.ModelProto, names: list[str], pixels: NDArray[np.uint8]) -> Floats:
    session = open_binding(model.SerializeToString())
    parts = [session.run(names, {"image": pixels[i : i + 64]})[0] for i in range(0, len(pixels), 64)]
    return np.concatenate(parts).astype(np.float32)
