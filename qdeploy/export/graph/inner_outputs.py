"""An ONNX Runtime session that also returns tensors from inside a graph."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnxruntime as ort

from qdeploy.runtime.engines.onnxruntime_binding import open_binding


def open_with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> ort.InferenceSession:
    """Open a copy of a graph that gives some of its tensors besides its outputs; nothing is fused away."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    present = {value.name for value in (*wide.graph.output, *wide.graph.input)}
    wide.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in present)
    return open_binding(wide.SerializeToString(), optimize="none")
