"""Answers that are no numbers: which image gives them, and the tensor of the graph in which they begin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qdeploy.core.errors import InputError
from qdeploy.core.metrics import Floats
from qdeploy.export.graph.inner_outputs import open_with_outputs
from qdeploy.export.graph.names import without_mark

FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")
"""Types of ONNX Runtime that may hold NaN and infinity, without bfloat16, which numpy lacks."""


def require_finite(
    model: onnx.ModelProto, answers_NK: Floats, pixels_NSSC: NDArray[np.uint8], name: Callable[[int], str]
) -> None:
    """Refuse a graph whose answers are not finite; inside it a tensor may hold -inf, as masks and padding do.

    Args:
        model: The float graph.
        answers_NK: What it gives for the images.
        pixels_NSSC: The images.
        name: Returns what an image is called, by its position.

    Raises:
        InputError: It names the first image, and the tensor in which what is no number begins.
    """
    bad = np.flatnonzero(~np.isfinite(answers_NK).reshape(len(answers_NK), -1).all(axis=1))
    if not len(bad):
        return
    first = int(bad[0])
    feed = {model.graph.input[0].name: pixels_NSSC[first : first + 1]}
    where = origin(model, feed, not_a_number=bool(np.isnan(answers_NK[first]).any()))
    raise InputError(
        f"the model's answer to {name(first)} is not finite: {where}", fix="repair the model, or leave out the image"
    )


def called(what: str, hashes: Sequence[str], start: int, position: int) -> str:
    """Return what an image is called.

    Args:
        what: The split that it belongs to.
        hashes: Those of the split's images.
        start: Where in the split the images begin that ``position`` counts from.
        position: Which of them.
    """
    return f"{what} image {start + position} (hash {hashes[start + position]})"


def origin(model: onnx.ModelProto, feed: Mapping[str, NDArray[Any]], *, not_a_number: bool) -> str:
    """Name the first tensor that holds NaN, or infinity where the answer is infinite, and what makes it.

    Args:
        model: The graph.
        feed: What it takes.
        not_a_number: Whether NaN is looked for.
    """
    makers = {o: n for n in model.graph.node for o in n.output if o}
    session = open_with_outputs(model, makers)
    names = [o.name for o in session.get_outputs() if o.type in FLOATS and o.name in makers]
    names = [name for name in makers if name in names]  # in the order of the nodes
    bad = np.isnan if not_a_number else np.isinf
    found = zip(names, session.run(names, dict(feed)), strict=True)
    name = next((n for n, v in found if bad(np.asarray(v, np.float64)).any()), "")
    if not name:
        return "it depends on the batch that the image is in"
    value = "NaN" if not_a_number else "infinity"
    return f"tensor '{without_mark(name)}', made by {makers[name].op_type}, is the first to hold {value}"
