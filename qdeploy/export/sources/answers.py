"""The outputs of a graph that may say which class an image is of, and those that turn out to say something else.

Array names: P probe images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from qdeploy.core.errors import InputError, near_miss
from qdeploy.export.graph.finite import origin
from qdeploy.export.graph.walk import is_standard, leading_to
from qdeploy.export.sources.inputs import FLOATS

PASSING = ("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "OneHot")
CHOOSING = ("ArgMax", "TopK", "Hardmax")
DETECTING = ("EfficientNMS_TRT", "BatchedNMS_TRT")
"""TensorRT's operators of detectors, which have no domain, or one of several; ONNX's own is NonMaxSuppression."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An output of the file, and the tensor whose values say the same in floats."""

    output: str
    tensor: str
    """The output itself, or what its ArgMax, TopK or Hardmax reads."""


def answers_of(model: onnx.ModelProto, wanted: str | None, file: Path) -> list[Answer]:
    """Return the outputs that may hold an answer: floats, or choices of classes, and nothing made of found objects.

    Args:
        model: The file as it came.
        wanted: Name of the only tensor that counts, if the user says so.
        file: Its name.

    Raises:
        InputError: If there is none.
    """
    graph = model.graph
    made = {name: node for node in graph.node for name in node.output if name}
    outputs = {o.name: o.type.tensor_type.elem_type for o in graph.output}  # 0 for sequences and maps
    if wanted is not None and wanted not in {*made, *outputs}:
        raise InputError(
            f"{file} has no tensor '{wanted}'{near_miss(wanted, [*outputs, *made])}; its outputs are "
            + ", ".join(outputs),
            fix="give one of them with `output`",
        )
    found, objects = [], None
    for name in [n for n in outputs if n in made] if wanted is None else [wanted]:  # others are weights or inputs
        if name in made and made[name].op_type == "ZipMap":
            name = str(made[name].input[0])  # the scores that it writes as a table for each image
        if wanted is None and (finds := next((n for n in leading_to(graph, [name]) if _finds_objects(n)), None)):
            objects = finds
            continue
        kind = outputs.get(name, TensorProto.FLOAT)
        source = _chosen_from(made, name)
        if source is not None:
            found.append(Answer(output=name, tensor=source))
        elif kind in FLOATS:
            found.append(Answer(output=name, tensor=name))
    if not found and not made.keys() & outputs:
        unmade = ", ".join(f"'{n}'" for n in outputs) or "none"
        raise InputError(
            f"{file} must have an output that its graph computes", found=unmade, fix="say with `output` which tensor"
        )
    if not found and objects is not None:
        raise InputError(
            f"{file} finds objects and no class of an image: it holds {objects.op_type}",
            fix="give a classifier, or say with `output` which tensor holds the scores of its classes",
        )
    if not found:
        kinds = ", ".join(f"'{n}' of {_kind(t)}" for n, t in outputs.items())
        raise InputError(
            f"{file} must give logits or probabilities as floats",
            found=kinds,
            fix="say with `output` which tensor before it holds them",
        )
    return found


def _finds_objects(node: onnx.NodeProto) -> bool:
    return is_standard(node, "NonMaxSuppression") or node.op_type in DETECTING


def _kind(dtype: int) -> str:
    return str(TensorProto.DataType.Name(dtype)).lower() if dtype else "no tensor"


def _chosen_from(made: Mapping[str, onnx.NodeProto], name: str) -> str | None:
    """Return the scores of which an output says the largest, by number, value or mark; None for any other output."""
    node = made.get(name)
    while node is not None and node.op_type in PASSING:
        node = made.get(node.input[0])
    return str(node.input[0]) if node is not None and node.op_type in CHOOSING else None


def require_finite(
    model: onnx.ModelProto, feed: dict[str, NDArray[Any]], answer: Answer, found: NDArray[Any] | None, file: Path
) -> None:
    """Refuse an answer that is finite for none of the probe images, by the tensor in which that begins."""
    if found is None or found.dtype.kind != "f" or not found.size:
        return
    if np.isfinite(found).reshape(len(found), -1).all(1).any():
        return
    where = origin(model, feed, not_a_number=bool(np.isnan(found).any()))
    raise InputError(f"output '{answer.output}' of {file} is not finite for noise: {where}", fix="export it again")


def require_shares(answer: Answer, table: NDArray[np.float64], file: Path) -> None:
    """Refuse probabilities ``[P, K]`` that are only choices: 1 for a class and 0 for all others."""
    if np.isin(table, (0.0, 1.0)).all():
        raise InputError(
            f"output '{answer.output}' of {file} gives 1 for a class and 0 for all others, which is no probability",
            fix="say with `output` which tensor before it holds logits or probabilities",
        )


def require_differing(answer: Answer, table: NDArray[np.float64], file: Path) -> None:
    """Refuse scores ``[P, K]`` that are the same for all images."""
    if table.shape[1] > 1 and len(table) > 1 and not np.ptp(table, axis=0).any():
        raise InputError(
            f"output '{answer.output}' of {file} answers every image the same: {_row(table[0])}",
            fix="give a trained model, or say with `output` which tensor holds its logits",
        )


def _row(values: NDArray[np.float64]) -> str:
    return ", ".join(f"{v:g}" for v in values[:3]) + (", ..." if len(values) > 3 else "")


def require_largest(answer: Answer, table: NDArray[np.float64], chosen: NDArray[Any], file: Path) -> None:
    """Refuse choices ``[P, M]`` that are not the largest of the scores ``[P, K]``.

    Args:
        answer: Where both are from.
        table: The scores.
        chosen: Numbers of classes or values, the largest first, or one value for the chosen class and another for all
            others.
        file: Name of the file.
    """
    first, largest = chosen[:, 0], table.argmax(1)
    marks = chosen.shape == table.shape and len(np.unique(chosen)) == 2
    marks = marks and (table.shape[1] > 2 or chosen.dtype.kind == "f")  # two whole numbers may be those of both classes
    marked = marks and (chosen.argmax(1) == largest).all()
    if not ((first == largest).all() or marked or np.allclose(table.max(1), first)):
        raise InputError(
            f"output '{answer.output}' of {file} chooses other classes than the largest of '{answer.tensor}'",
            fix="say with `output` which tensor holds logits or probabilities",
        )
