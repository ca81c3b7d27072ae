"""Tracing of a trained model to a float ONNX graph: folded, readable, reproducible, free of local paths."""

from __future__ import annotations

import ast
import gc
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from torch.jit._trace import TracerWarning

import qdeploy.models
from qdeploy.core.machine import versions
from qdeploy.export.graph import entrance
from qdeploy.export.graph.entrance import streamline_entrance
from qdeploy.export.graph.gemms import normalise_gemms
from qdeploy.export.graph.opset import OPSET
from qdeploy.export.kept import keep, key_of, read_kept

MAX_BATCH = 4096
INPUTS, OUTPUTS = ["image"], ["logits", "probabilities"]


def trace(model: nn.Module, size: int) -> onnx.ModelProto:
    """Trace a model in its inference form (``qdeploy.models.folding``) to ONNX.

    The graph takes ``image``, uint8 ``[batch, size, size, 3]``, and gives ``logits`` and ``probabilities``,
    float32 ``[batch, K]``. Nodes are named after the module they come from.
    """
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with _undisturbed():
        graph = _scripted_graph(model, example) if is_scripted(model) else _graph(model, example)
    _name_nodes(graph)
    _strip(graph)
    normalise_gemms(graph.graph)
    streamline_entrance(graph)
    onnx.checker.check_model(graph, full_check=True)
    return graph


def is_scripted(model: nn.Module) -> bool:
    """Tell whether TorchScript is inside: torch.export refuses it."""
    return any(isinstance(part, torch.jit.ScriptModule) for part in model.modules())


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep what the exporter says off the screen, and the garbage collector out of its way."""
    off, collecting = logging.root.manager.disable, gc.isenabled()
    logging.disable(logging.CRITICAL)
    gc.disable()  # a fifth of the time: millions of objects are made, and none is garbage yet
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            yield
    finally:
        logging.disable(off)
        if collecting:
            gc.enable()


def _graph(model: nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=INPUTS,
        output_names=OUTPUTS,
        dynamic_shapes=({0: batch},),
        verbose=False,
    )
    assert program is not None
    graph: onnx.ModelProto = program.model_proto
    return graph


def _scripted_graph(model: nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    """Trace a model that holds TorchScript, by torch's older exporter.

    That one would take one side of a branch in Python in silence; it warns, and here the warning is an error.
    """
    file: Any = io.BytesIO()  # it takes files too, whatever its types say
    warnings.filterwarnings("error", "Converting a tensor to a Python boolean", TracerWarning)
    with torch.no_grad():
        traced = torch.jit.trace(model, (example,), check_trace=False)
    torch.onnx.export(
        traced,
        (example,),
        file,
        dynamo=False,
        opset_version=OPSET,
        input_names=INPUTS,
        output_names=OUTPUTS,
        dynamic_axes={name: {0: "batch"} for name in (*INPUTS, *OUTPUTS)},
    )
    graph = onnx.load_model_from_string(file.getvalue())
    _keep_constants_as_weights(graph.graph)
    return onnx.shape_inference.infer_shapes(graph)


def _keep_constants_as_weights(graph: onnx.GraphProto) -> None:
    """Make initializers of the nodes that hold tensors, as a quantizer expects them."""
    for node in [n for n in graph.node if n.op_type == "Constant" and n.attribute[0].name == "value"]:
        tensor = node.attribute[0].t
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        graph.node.remove(node)


def trace_once(model: nn.Module, size: int, identity: str) -> onnx.ModelProto:
    """Trace a model, or read the graph that an earlier export has traced.

    Args:
        model: In its inference form.
        size: Height and width of the model's images.
        identity: What tells it from every other model: its configuration and the hash of its weights.
    """
    ours = [Path(__file__), Path(entrance.__file__), *sorted(Path(qdeploy.models.__path__[0]).glob("*.py"))]
    made_by = versions("torch", "onnx", "onnxscript", "torchvision", "timm")
    key = key_of([identity, str(size), *(f"{k} {v}" for k, v in made_by.items()), *(p.read_bytes() for p in ours)])
    data = read_kept("graphs", key)
    if data is not None:
        return onnx.load_model_from_string(data)
    graph = trace(model, size)
    keep("graphs", key, graph.SerializeToString())
    return graph


def _name_nodes(model: onnx.ModelProto) -> None:
    """Name each node ``module/Operator`` from the scopes the exporter recorded."""
    counts: Counter[str] = Counter()
    module = ""
    for node in model.graph.node:
        recorded = {p.key: p.value for p in node.metadata_props}.get("pkg.torch.onnx.name_scopes")
        if recorded:
            module = ast.literal_eval(recorded)[-2]
        elif node.name.startswith("/"):  # the older exporter's
            module = ".".join(node.name.split("/")[1:-1])
        name = f"{module or 'model'}/{node.op_type}"
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"


def _strip(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes: they hold source paths and stack traces of this machine."""
    del model.metadata_props[:]
    model.doc_string = ""
    graph = model.graph
    graph.name = "qdeploy"
    graph.doc_string = ""
    del graph.metadata_props[:]
    for item in (*graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        item.doc_string = ""
        del item.metadata_props[:]
