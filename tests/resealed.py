"""Model files that were changed by somebody who knows how: the checksum is right again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from qdeploy.core.artifact import BLANK, CARD_KEY, CHECKSUM_KEY, read_artifact, sealed
from qdeploy.core.card import Goldens
from qdeploy.core.engine_file import EngineHeader
from qdeploy.core.metrics import Floats


def reseal(source: Path, target: Path, change: Callable[[dict[str, Any]], object], model: Any = None) -> Path:
    """Write a copy of a model file, or another graph, with a changed card."""
    card = read_artifact(source).card.to_dict()
    change(card)
    model = model or onnx.load(str(source))
    onnx.helper.set_model_props(model, {CARD_KEY: json.dumps(card), CHECKSUM_KEY: BLANK})
    target.write_bytes(sealed(model.SerializeToString()))
    return target


def change_logits(card: dict[str, Any], change: Callable[[Floats], Floats]) -> None:
    """Change the logits ``[N, K]`` of a card's goldens."""
    goldens = Goldens.from_dict(card["goldens"])
    card["goldens"] = Goldens.of(goldens.images, change(goldens.logits), goldens.min_sqnr_db).to_dict()


def with_head(
    source: Path, target: Path, turn: Callable[[Floats], Floats], change: Callable[[dict[str, Any]], object]
) -> Path:
    """Write a copy of a model file whose last layer's weights and biases ``[K, ...]`` are turned into others."""
    model = onnx.load(str(source))
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    for name in gemm.input[1:]:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        turned = np.ascontiguousarray(turn(numpy_helper.to_array(tensor)))
        tensor.CopyFrom(numpy_helper.from_array(turned, name))
    return reseal(source, target, change, model)


def behind_logits(
    source: Path, target: Path, nodes: Sequence[onnx.NodeProto], constants: Mapping[str, NDArray[Any]]
) -> Path:
    """Write a copy of a model file in which nodes make ``logits`` of what it gave before, ``raw_logits``."""
    model = onnx.load(str(source))
    place, producer = next((i, n) for i, n in enumerate(model.graph.node) if "logits" in n.output)
    producer.output[0] = "raw_logits"
    for i, node in enumerate(nodes, place + 1):
        model.graph.node.insert(i, node)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return reseal(source, target, lambda card: None, model)


def with_reversed_labels(source: Path, target: Path) -> Path:
    """Write the same model with its outputs, and their labels, the other way round."""

    def change(card: dict[str, Any]) -> None:
        card["labels"].reverse()
        change_logits(card, lambda rows: rows[:, ::-1])

    return with_head(source, target, lambda values: values[::-1], change)


def with_noise(source: Path, target: Path) -> Path:
    """Write a worse model whose goldens ask for nothing."""
    rng = np.random.default_rng(0)
    return with_head(
        source,
        target,
        lambda values: values + rng.normal(0, 5.0, values.shape).astype(np.float32) * values.std(),
        lambda card: card["goldens"].update(min_sqnr_db=-100),
    )


def engine_header(file: Path) -> EngineHeader:
    """Return the header of a TensorRT engine that a model file might be built to."""
    source = read_artifact(file)
    return EngineHeader(
        builder="tensorrt",
        builder_version="11.4.0",
        compute_capabilities=("9.0",),
        platform="Linux x86_64",
        min_batch=1,
        opt_batch=1,
        max_batch=8,
        precision="int8",
        source_sha256=source.sha256,
        card=source.card.to_dict(),
    )
