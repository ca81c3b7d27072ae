"""Reads an ONNX file from elsewhere, and brings it into the form that the rest of an export expects."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper, numpy_helper, version_converter

from qdeploy.core.errors import InputError, one_line
from qdeploy.core.file_kind import kind_of
from qdeploy.export.graph.all_axes import name_all_axes
from qdeploy.export.graph.functions import without_functions
from qdeploy.export.graph.fused import expand_fused
from qdeploy.export.graph.gemms import normalise_gemms
from qdeploy.export.graph.names import name_nodes_apart, name_tensors_apart
from qdeploy.export.graph.opset import OPSET
from qdeploy.export.graph.size import MAX_BYTES, needs_trial, outside_bytes
from qdeploy.export.graph.walk import STANDARD, all_nodes, all_tensors, is_standard, with_bodies
from qdeploy.export.sources.tidy import tidy
from qdeploy.runtime.engines.onnxruntime_binding import VERSION, open_binding
from qdeploy.runtime.engines.onnxruntime_options import OnnxRuntimeError
from qdeploy.runtime.trial import require_bounded_file

LEAST_OPSET = 13
"""The first with a scale for each channel."""
LEAST_IR = 8
"""Before 4 every weight had to be among the inputs; 8 goes with opset 13 to 17."""
LAYER_NORMALIZATION_OPSET = 17
RESIZE_OPSET = 11
"""The first whose Resize has modes for the places of its values."""
INTEGER_OPERATORS = frozenset(
    """QuantizeLinear DequantizeLinear DynamicQuantizeLinear ConvInteger MatMulInteger MatMulInteger16
    MatMulIntegerToFloat DynamicQuantizeMatMul DynamicQuantizeLSTM MatMulNBits MatMulBnb4 MatMulFpQ4 QGemm QAttention
    QEmbedLayerNormalization QMoE GatherBlockQuantized QuantizeBFP DequantizeBFP QuantizeWithOrder
    DequantizeWithOrder""".split()  # noqa: SIM905
)
"""Operators of quantized files, of ONNX and ONNX Runtime, beside those whose names begin with ``QLinear``."""
MADE_FOR_THIS_CPU = "com.microsoft.nchwc"
"""Domain of operators whose layout depends on the CPU that a file was optimized on."""
MATRIX = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization")


def read_onnx(file: Path) -> onnx.ModelProto:
    """Read a float ONNX file; its functions are written out, its weights are no inputs, its nodes have names.

    Raises:
        InputError: If it is no ONNX file, has no nodes, is larger than one file can be, is quantized, was optimized for
            one CPU, or holds weights that are not finite.
    """
    model = _loaded(file)
    standard = [o.version for o in model.opset_import if o.domain in STANDARD]
    if not standard:
        kind = _kind_of(file) or ("no ONNX file with a graph: it names no opset", "give an exported .onnx file")
        raise InputError(f"{file} is {kind[0]}", fix=kind[1])
    if not model.graph.node:
        raise InputError(f"{file} holds a graph without nodes, which computes nothing", fix="export the model again")
    for node in all_nodes(model):
        if node.op_type in INTEGER_OPERATORS or node.op_type.startswith(("QLinear", "QOrdered")):
            raise InputError(
                f"{file} is quantized already ({node.op_type} at '{node.name or next(iter(node.output), '')}')",
                fix="give the float file it was made from",
            )
        if node.domain == MADE_FOR_THIS_CPU:
            raise InputError(
                f"{file} was optimized by ONNX Runtime for one kind of CPU ({node.domain}.{node.op_type})",
                fix="give the file it was made from, or save it with the optimization level `ORT_ENABLE_EXTENDED`",
            )
    _require_values(model, file)
    if needs_trial(model):
        require_bounded_file(file, model.ByteSize())
    model = without_functions(model, str(file))
    constants = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, LEAST_IR)
    tidy(model)
    _write_plainly(model)
    name_nodes_apart(model.graph, ours=())
    _require_finite_weights(model, file)
    return model


def prepared(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """Return a foreign graph with the operators, and in the form, that the rest of an export knows.

    Constants and BatchNorms are folded, fused operators and old ones are written as standard ones of ``LEAST_OPSET`` or
    newer, and no name can be one of ours.

    Raises:
        InputError: If ONNX Runtime or onnx refuses it, or its operators are too old to be converted.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    expand_fused(copy)
    copy = recent(simplified(copy, file), file)
    expand_fused(copy)  # those that were fused while constants were folded
    name_nodes_apart(copy.graph)
    name_tensors_apart(copy.graph)
    normalise_gemms(copy.graph)
    name_all_axes(copy)
    del copy.graph.quantization_annotation[:]
    del copy.training_info[:]
    return copy


def _loaded(file: Path) -> onnx.ModelProto:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise _too_large(file, file.stat().st_size)
        model = onnx.load(str(file), load_external_data=False)
        size = file.stat().st_size + outside_bytes(model)
        if size > MAX_BYTES:
            raise _too_large(file, size)
        external_data_helper.load_external_data_for_model(model, str(file.parent))
    except onnx.checker.ValidationError as error:
        raise InputError(
            f"{file} keeps weights in another file that cannot be read: {_short(error)}", fix="put both side by side"
        ) from error
    except (OSError, DecodeError, ValueError, UnicodeDecodeError) as error:
        if kind := _kind_of(file):
            raise InputError(f"{file} is {kind[0]}", fix=kind[1]) from error
        raise InputError(f"{file} cannot be read as ONNX: {_short(error)}") from error
    return model


def _kind_of(file: Path) -> tuple[str, str] | None:
    try:
        with file.open("rb") as stream:
            return kind_of(stream.read(64))
    except OSError:
        return None


def _require_values(model: onnx.ModelProto, file: Path) -> None:
    """Refuse constants whose data are not as long as their shape says, or have no type."""
    for tensor in all_tensors(model):
        try:
            numpy_helper.to_array(tensor)
        except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
            raise InputError(
                f"the weights '{tensor.name}' of {file} cannot be read: {one_line(error)}",
                fix="the file is damaged: copy or export it again",
            ) from error


def _short(error: Exception) -> str:
    return one_line(error) if not isinstance(error, OSError) else str(error.strerror or error)


def _too_large(file: Path, found: int) -> InputError:
    return InputError(
        f"{file} holds {found / 2**30:.1f} GiB with its weights, and one ONNX file can hold 2 GiB",
        fix="give a smaller model",
    )


def _write_plainly(model: onnx.ModelProto) -> None:
    """Leave one way to write the standard domain and a constant: without ``ai.onnx``, and dense.

    Domains that no node is of go: ONNX Runtime refuses a version of them that it does not know.
    """
    for node in all_nodes(model):
        if node.domain in STANDARD:
            node.ClearField("domain")  # an empty one that is written is another file
    model.graph.name = model.graph.name or "graph"  # onnx's checker wants one
    newest = max(o.version for o in model.opset_import if o.domain in STANDARD)
    read = {node.domain for node in all_nodes(model)}
    others = [o for o in model.opset_import if o.domain not in STANDARD and o.domain in read]
    del model.opset_import[:]
    model.opset_import.extend([onnx.helper.make_opsetid("", newest), *others])
    for graph in with_bodies(model.graph):
        graph.initializer.extend(_dense(sparse) for sparse in graph.sparse_initializer)
        del graph.sparse_initializer[:]


def _dense(sparse: onnx.SparseTensorProto) -> TensorProto:
    values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    if math.prod(sparse.dims) * values.itemsize > MAX_BYTES:
        raise InputError(f"the sparse tensor '{sparse.values.name}' is larger than one ONNX file can be, unpacked")
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    dense[tuple(places.T) if places.ndim == 2 else np.unravel_index(places, dense.shape)] = values
    return numpy_helper.from_array(dense, sparse.values.name)


def _require_finite_weights(model: onnx.ModelProto, file: Path) -> None:
    """Refuse NaN anywhere, and infinity among the weights of a layer; a mask or a bound may be infinite."""
    layers = {i for n in all_nodes(model) if is_standard(n, *MATRIX) for i in n.input[1:]}
    for tensor in all_tensors(model):
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if np.isnan(values).any() or (tensor.name in layers and not np.isfinite(values).all()):
            raise InputError(
                f"the weights '{tensor.name}' of {file} hold values that are not finite", fix="export it again"
            )


def recent(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """Return a graph with operators of opset ``LEAST_OPSET`` or newer.

    Raises:
        InputError: If its operators are older and cannot be converted.
    """
    opset = opset_of(model)
    newer = any(is_standard(n, "LayerNormalization") for n in all_nodes(model))
    least = LAYER_NORMALIZATION_OPSET if newer else LEAST_OPSET
    if opset >= least:
        return model
    try:
        converted = version_converter.convert_version(model, OPSET)
        if opset < RESIZE_OPSET:
            _as_before(converted)
        return converted
    except Exception as error:  # whatever onnx's converter raises from C++
        raise InputError(
            f"{file} has opset {opset}, at least {least} is needed, and it cannot be converted ({one_line(error)})",
            fix="export it again with a newer opset",
        ) from error


def _as_before(model: onnx.ModelProto) -> None:
    """Finish what onnx's converter leaves undone of operators from before opset 11.

    Each Resize places its values as it did, and a Pad has no ``value`` where its mode takes none.
    """
    for node in all_nodes(model):
        if is_standard(node, "Pad"):
            for attribute in [a for a in node.attribute if a.name == "value"]:
                node.attribute.remove(attribute)
        if is_standard(node, "Resize"):
            given = {a.name for a in node.attribute}
            before = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in before.items() if k not in given)


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators that a graph uses."""
    return max((o.version for o in model.opset_import if o.domain in STANDARD), default=0)


def simplified(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """Let ONNX Runtime fold constants and BatchNorms, as its own quantizer wants it."""
    with tempfile.TemporaryDirectory() as folder:
        simple = Path(folder) / "simple.onnx"
        try:
            open_binding(model.SerializeToString(), optimize="basic", keep_optimized=simple)
        except OnnxRuntimeError as error:
            raise InputError(f"ONNX Runtime {VERSION} refuses {file}: {error}") from error
        return onnx.load(str(simple))
