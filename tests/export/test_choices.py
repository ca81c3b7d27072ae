"""Graphs of choices that are kept: how often one is made."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.export.int8 import choices as module
from qdeploy.export.int8.choices import Choices
from qdeploy.export.int8.clock import FloatNodes
from qdeploy.export.int8.encodings import encoding_for
from qdeploy.export.int8.quantize import quantize
from qdeploy.export.int8.units import quantizable

FILE = SHIPPED / "model.fp32.onnx"


def test_a_graph_is_made_once_and_one_that_is_too_large_evicts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[FloatNodes] = []

    def counted(*args: Any) -> onnx.ModelProto:
        made.append(args[3])
        return quantize(*args)

    monkeypatch.setattr(module, "quantize", counted)
    model, encoding, card = onnx.load(str(FILE)), encoding_for("arm"), read_artifact(FILE).card
    names = [name for node in model.graph.node for name in node.output]
    ranges = {name: (-1.0, 1.0 + i / len(names)) for i, name in enumerate(names)}
    choices = Choices(model=model, card=card, encoding=encoding, ranges=ranges, biases={})
    large = quantizable(model, encoding)
    small = frozenset({min(large)})  # so little in float takes a fraction of the bytes
    for nodes in (small, small):
        with choices.opened([nodes]):
            pass
    assert made == [small]
    size = choices.model_of(large).ByteSize()
    monkeypatch.setattr(module, "KEPT_BYTES", size - 1)
    made.clear()
    for nodes in (large, small, large, small):
        with choices.opened([nodes]):
            pass
    assert made == [large, large]
