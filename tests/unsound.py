"""A model file that answers NaN to a black image, as an accepted INT8 file did whose divisor was rounded to zero."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from tests.resealed import behind_logits


def unsound(source: Path, target: Path) -> Path:
    """Write a copy of a model file that multiplies its logits by mean / mean of the pixels: 1, or NaN of black."""
    nodes = [
        helper.make_node("Cast", ["image"], ["unsound_pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["unsound_pixels"], ["unsound_rows"]),
        helper.make_node("ReduceMean", ["unsound_rows", "unsound_last_axis"], ["unsound_mean"]),
        helper.make_node("Div", ["unsound_mean", "unsound_mean"], ["unsound_one"]),
        helper.make_node("Mul", ["raw_logits", "unsound_one"], ["logits"]),
    ]
    return behind_logits(source, target, nodes, {"unsound_last_axis": np.array([1])})
