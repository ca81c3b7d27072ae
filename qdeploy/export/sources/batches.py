"""Graphs from elsewhere that take one batch only are made to take any, if that can be proven.

The proof: batches of 1, 3 and 7 give what the file gives image by image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qdeploy.core.errors import InputError, one_line
from qdeploy.core.reasons import onnxruntime_reason
from qdeploy.export.graph.inner_outputs import open_with_outputs
from qdeploy.export.graph.walk import FreeNames, with_bodies
from qdeploy.export.sources.dropped_batch import with_batch_kept
from qdeploy.export.sources.evaluation import FIX, require_evaluation, require_no_chance
from qdeploy.export.sources.free_shapes import free_shapes
from qdeploy.export.sources.inputs import Entrance
from qdeploy.export.sources.onnx_read import recent, simplified
from qdeploy.runtime.engines.onnxruntime_binding import FAILURES
from qdeploy.runtime.engines.onnxruntime_options import OnnxRuntimeError

BATCHES = (7, 3, 1)
TOLERANCE = {np.dtype(np.float16): 2e-2, np.dtype(np.float64): 1e-4}
"""Largest difference that is rounding, relative to the largest value; for float32 1e-3."""


def image_by_image(
    model: onnx.ModelProto, entrance: Entrance, names: Sequence[str], values: NDArray[Any]
) -> list[NDArray[Any]]:
    """Return some tensors of a file for images one at a time, or in the only batch that it takes; each ``[N, -1]``.

    Raises:
        OnnxRuntimeError: If it cannot be run.
    """
    size = max(1, entrance.batch)
    session = open_with_outputs(model, names)
    rows: list[list[NDArray[Any]]] = [[] for _ in names]
    for start in range(0, len(values), size):
        part = values[start : start + size]
        full = np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)]) if len(part) < size else part
        try:
            found = session.run(list(names), {entrance.name: full})
        except FAILURES as error:
            raise OnnxRuntimeError(onnxruntime_reason(str(error))) from error
        for kept, tensor in zip(rows, found, strict=True):
            kept.append(np.asarray(tensor).reshape(size, -1)[: len(part)])
    return [np.concatenate(kept) for kept in rows]


def outputs_of(model: onnx.ModelProto, names: Sequence[str], values: NDArray[Any], file: Path) -> list[NDArray[Any]]:
    """Return some tensors of a graph for a batch of images.

    Raises:
        InputError: If ONNX Runtime cannot run it.
    """
    try:
        found = open_with_outputs(model, names).run(list(names), {model.graph.input[0].name: values})
    except OnnxRuntimeError as error:
        raise InputError(f"ONNX Runtime refuses what is made of {file}: {error}") from error
    except FAILURES as error:
        raise InputError(f"ONNX Runtime cannot run what is made of {file}: {onnxruntime_reason(str(error))}") from error
    return [np.asarray(tensor) for tensor in found]


def with_any_batch(
    model: onnx.ModelProto, entrance: Entrance, names: Sequence[str], values: NDArray[Any], file: Path
) -> tuple[onnx.ModelProto, str]:
    """Return a file's graph so that it takes any number of images, and what a user should know of it.

    Args:
        model: The file as it came.
        entrance: What it takes.
        names: Tensors that must not change.
        values: Seven images as it takes them.
        file: Its name.

    Raises:
        InputError: If the file cannot be run, or its batch is fixed in a way that cannot be undone.
    """
    alone = _alone(model, entrance, names, values, file)
    reasons = []
    for candidate, said in _candidates(_giving(model, names), entrance, file):
        reason = _difference(candidate, entrance, names, values, alone)
        if not reason:
            return candidate, said
        reasons.append(reason)
    require_evaluation(model, file)
    if entrance.batch:
        only = f"{file} takes batches of {entrance.batch} only, and no way was found to change that ({reasons[-1]})"
        raise InputError(only, fix="export it with a dynamic batch")
    raise InputError(
        f"{file} answers batches not as single images ({reasons[-1]}): something in it mixes the images of a batch, "
        "or its first axis is not the batch",
        fix="export it so that each image has a row of its own answer",
    )


def _alone(
    model: onnx.ModelProto, entrance: Entrance, names: Sequence[str], values: NDArray[Any], file: Path
) -> list[NDArray[Any]]:
    """Return what a file gives image by image; the first batch is run twice."""
    size = max(1, entrance.batch) if entrance.batch <= len(values) else 0
    require_no_chance(model, names, file)
    try:
        rows = image_by_image(model, entrance, names, np.concatenate([values[:size], values]))
    except (OnnxRuntimeError, ValueError) as error:
        raise InputError(f"{file} cannot be run on an image: {one_line(error)}") from error
    for name, found in zip(names, rows, strict=True):
        if not close(found[:size], found[size : 2 * size]):
            require_evaluation(model, file)
            raise InputError(f"{file} answers the same image differently each time ('{name}')", fix=FIX)
    return [found[size:] for found in rows]


def _giving(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a graph that gives these tensors and nothing else, so that they keep their names and the rest goes."""
    copy = _copy(model)
    graph = copy.graph
    known = {v.name: v for v in (*graph.value_info, *graph.output)}
    kept = [onnx.ValueInfoProto.FromString((known.get(n) or _untyped(n)).SerializeToString()) for n in names]
    del graph.output[:]
    graph.output.extend(kept)
    return copy


def _untyped(name: str) -> onnx.ValueInfoProto:
    return onnx.ValueInfoProto(name=name)


def _candidates(model: onnx.ModelProto, entrance: Entrance, file: Path) -> Iterator[tuple[onnx.ModelProto, str]]:
    """Yield graphs that may take any batch, the simplest first, with what a user should know of each."""
    if not entrance.batch:
        yield model, ""
    else:
        free = _copy(model)
        _free_dimensions(free.graph, entrance)
        yield free, ""
    batch = max(1, entrance.batch)
    try:
        folded = recent(simplified(model, file), file)  # shapes that were computed become constants
    except InputError:
        return
    kept = with_batch_kept(folded, entrance.name) if entrance.batch == 1 else None
    for form in [folded] if kept is None else [folded, kept]:
        for everywhere in (False, True):
            free = _copy(form)
            _free_dimensions(free.graph, entrance)
            if free_shapes(free.graph, batch, entrance.name, everywhere=everywhere) or form is kept:
                yield free, ""
    if entrance.batch == 1:
        said = "the file takes one image at a time, and so does what is made of it: batches gain nothing"
        yield one_by_one(folded, entrance), said


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _difference(
    model: onnx.ModelProto, entrance: Entrance, names: Sequence[str], values: NDArray[Any], alone: list[NDArray[Any]]
) -> str:
    """Return why a graph does not give in batches what the file gives image by image; nothing if it does."""
    try:
        session = open_with_outputs(model, names)
        for size in BATCHES:
            found = session.run(list(names), {entrance.name: values[:size]})
            for name, tensor, expected in zip(names, found, alone, strict=True):
                rows = np.asarray(tensor)
                behind = rows.ndim > 2 and len(rows) == 1  # images behind an axis of one, as those of an LSTM
                if size > 1 and rows.shape[:1] != (size,) and not behind:
                    return f"'{name}' is {list(rows.shape)} for {size} images"
                if rows.size != expected[:size].size or not close(rows.reshape(size, -1), expected[:size]):
                    return f"'{name}' differs in batches of {size}"
    except OnnxRuntimeError as error:
        return one_line(error, 120)
    except FAILURES as error:
        return onnxruntime_reason(str(error))[:120]
    return ""


def close(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Tell whether values differ by no more than rounding, and are infinite or NaN at the same places."""
    if found.dtype.kind != "f":
        return bool((found == expected).all())
    if not expected.size:
        return True
    finite = np.isfinite(expected)
    if not (np.isfinite(found) == finite).all():
        return False
    if not finite.any():
        return True
    most = TOLERANCE.get(found.dtype, 1e-3) * max(1e-3, float(np.abs(expected[finite].astype(np.float64)).max()))
    return bool(np.abs(found[finite].astype(np.float64) - expected[finite]).max() <= most)


def free_unknown_batch(graph: onnx.GraphProto) -> None:
    """Write a batch of 0 or -1, as some tools write any, as ONNX means it: as a name."""
    for value in (*graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].HasField("dim_value") and dims[0].dim_value < 1:
            dims[0].dim_param = "batch"


def _free_dimensions(graph: onnx.GraphProto, entrance: Entrance) -> None:
    """Take the batch out of the types of inputs and outputs; those of inner tensors are found anew."""
    for value in (*(i for i in graph.input if i.name == entrance.name), *graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims:
            dims[0].dim_param = "batch"
    for output in graph.output:
        for dim in output.type.tensor_type.shape.dim[1:]:
            if not dim.HasField("dim_value"):
                dim.Clear()
    del graph.value_info[:]


def one_by_one(model: onnx.ModelProto, entrance: Entrance) -> onnx.ModelProto:
    """Return a graph that runs one which takes a single image for each image of a batch: the body of a Scan.

    Its outputs are ``[N, -1]``.
    """
    copy = onnx.shape_inference.infer_shapes(model)
    graph = copy.graph
    names = [o.name for o in graph.output]
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
    new = FreeNames(graph)
    inner = {n: new(f"{n}_of_one") for n in (*names, entrance.name)}
    rows, one = {n: new(f"qd_row_{i}") for i, n in enumerate(names)}, new("qd_one")
    flat, first = new("qd_flat"), new("qd_first")
    for node in (node for inside in with_bodies(graph) for node in inside.node):
        node.input[:] = [inner.get(n, n) for n in node.input]
        node.output[:] = [inner.get(n, n) for n in node.output]
    nodes = [helper.make_node("Unsqueeze", [one, first], [inner[entrance.name]]), *graph.node]
    nodes += [helper.make_node("Reshape", [inner[n], flat], [rows[n]]) for n in names]
    shape = [d.dim_value for d in next(i for i in graph.input if i.name == entrance.name).type.tensor_type.shape.dim]
    body = helper.make_graph(
        nodes,
        "one image",
        [helper.make_tensor_value_info(one, entrance.dtype, shape[1:])],
        [helper.make_tensor_value_info(rows[n], kinds[n], [None]) for n in names],
    )
    scan = helper.make_node("Scan", [entrance.name], names, body=body, num_scan_inputs=1)
    del graph.node[:], graph.value_info[:], graph.output[:]
    graph.node.append(scan)
    graph.initializer.extend(numpy_helper.from_array(np.asarray([v], np.int64), n) for n, v in ((flat, -1), (first, 0)))
    graph.output.extend(helper.make_tensor_value_info(n, kinds[n], ["batch", None]) for n in names)
    _free_dimensions(graph, entrance)
    return copy
