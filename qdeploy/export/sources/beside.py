"""What a foreign file, its graph, or the files beside it, say of the normalisation that the graph expects."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from qdeploy.core.preprocessing import Preprocessing
from qdeploy.export.graph.walk import is_standard, known_tensors

FILES = (("preprocessor_config.json", "image_mean", "image_std"), ("config.json", "mean", "std"))
"""Hugging Face's, and timm's; the keys of mean and std."""
INSIDE = "pretrained_cfg"
ULTRALYTICS = "ultralytics"
MOVING = ("Cast", "Identity", "Transpose")
ARITHMETIC = ("Add", "Div", "Mul", "Sub")
WIDE = 50.0
"""What is at least taken from, or divides, pixels that count up to 255; for pixels up to 1 it is far below."""


def other_normalisation(model: onnx.ModelProto, rules: Preprocessing, file: Path) -> str | None:
    """Return a line if a file's metadata, or a file beside it, say another mean or std than is taken; else None."""
    for where, mean, std in _said(model, file):
        taken = (*rules.mean, *rules.std)
        if all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip((*mean, *std), taken, strict=True)):
            return None
        numbers = " and ".join(
            f"`{name}={','.join(f'{v:g}' for v in vs)}`" for name, vs in (("mean", mean), ("std", std))
        )
        return f"{where} says {numbers}, for pixels from 0 to 1; another normalisation is taken"
    return None


def _said(model: onnx.ModelProto, file: Path) -> list[tuple[str, list[float], list[float]]]:
    found = []
    if any(p.key == "author" and ULTRALYTICS in p.value.lower() for p in model.metadata_props):
        found.append((f"{file.name} is Ultralytics', whose classifiers take plain pixels, which", [0.0] * 3, [1.0] * 3))
    for name, mean_key, std_key in FILES:
        table = _table(file.parent / name)
        for part in (table, table.get(INSIDE)):
            if isinstance(part, dict):
                mean, std = _numbers(part.get(mean_key)), _numbers(part.get(std_key))
                if mean and std:
                    found.append((str(file.parent / name), mean, std))
    return found


def _table(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def _numbers(value: Any) -> list[float] | None:
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(v, (int, float)) for v in value):
        return None
    return [float(v) for v in value]


def own_normalisation(model: onnx.ModelProto, image: str) -> list[str]:
    """Return a line if a graph itself begins by normalising its images, as Keras' EfficientNet does.

    Args:
        model: The graph.
        image: Name of its input.
    """
    known = known_tensors(model.graph)
    found, divisor, largest = [], 1.0, 1.0
    while len(readers := [n for n in model.graph.node if image in n.input]) == 1 and is_standard(
        node := readers[0], *MOVING, *ARITHMETIC
    ):
        image = node.output[0]
        if node.op_type in ARITHMETIC:
            tensor = next((known[name] for name in node.input if name in known), None)
            if tensor is None or math.prod(tensor.dims) not in (1, 3):
                break
            values = numpy_helper.to_array(tensor)
            found.append(node.op_type)
            size = float(np.abs(values).mean(dtype=np.float64))
            divisor *= {"Div": size, "Mul": 1 / size if size else 1.0}.get(node.op_type, 1.0)
            offset = size * divisor if node.op_type in ("Add", "Sub") else 0.0  # in the units of the image
            largest = max(largest, divisor, offset)
    if not found:
        return []
    options, pixels = ("`range=0-255`", 255) if largest >= WIDE else ("`mean=0` and `std=1`", 1)
    return [
        f"the graph itself begins by normalising ({', '.join(found)}), as if it took pixels from 0 to {pixels}, and "
        f"ImageNet's `mean` and `std` are applied before it; if that is twice, give {options}"
    ]
