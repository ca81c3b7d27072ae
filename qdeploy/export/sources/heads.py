"""Where a graph's logits are, found by what it computes and not by how its last nodes are called.

The graph is run on a few images with the tensors before its outputs as outputs. Rows that are at least 0 and sum to 1
are probabilities, whatever made them; the logits are the nearest tensor before them whose softmax they are.

Array names: P probe images, K classes.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qdeploy.core.errors import InputError
from qdeploy.core.metrics import Floats
from qdeploy.export.graph.inner_outputs import open_with_outputs
from qdeploy.export.graph.names import FOREIGN_TENSOR
from qdeploy.export.sources.answers import Answer, require_differing, require_finite, require_largest, require_shares

PROBES = 7
DEPTH, MOST = 12, 64
"""How far before an output logits are looked for: nodes, and tensors."""
FINE, COARSE = 1e-5, 4e-3
"""Differences of probabilities that are rounding, in float32 and in float16."""
NUMPY = re.compile(r"tensor\((bool|u?int(8|16|32|64)|float16|float|double)\)")
"""Types of ONNX Runtime that numpy has: not bfloat16, for one."""
SHAPES = {3: ", rows for places of an image, as detectors give", 4: ", a map of each image, as segmentation gives"}
"""What answers with so many axes are, as a rule."""
Values = Mapping[str, NDArray[Any]]
Rule = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where the logits are, and what the file itself answers."""

    logits: str
    """Tensor whose values are the logits, or from which they follow."""
    form: str
    """How: ``logits``, ``probabilities`` (their logarithm is taken), ``sigmoid`` (one logit of the second class)."""
    classes: int
    rank: int
    """Number of axes of ``logits``."""
    cast: bool
    """Whether ``logits`` must be brought to float32."""
    answer: Answer
    gives: str
    """What ``answer`` gives: ``logits``, ``probabilities``, ``sigmoid``."""

    def said(self) -> str:
        """Return what was taken, in words."""
        whose = f"output '{self.answer.output}'"
        if self.answer.tensor != self.answer.output:
            whose = f"'{self.answer.tensor}', whose largest is {whose}"
        if self.gives == "logits":
            return f"logits are {whose}"
        if self.gives == "sigmoid":
            return f"{whose} is the probability of the second of two classes"
        taken = "their logarithm" if self.form == "probabilities" else f"'{self.logits.removesuffix(FOREIGN_TENSOR)}'"
        return f"{whose} holds probabilities; logits are {taken}"


def find_head(
    model: onnx.ModelProto,
    feed: dict[str, NDArray[Any]],
    answers: list[Answer],
    names: Mapping[str, str],
    classes: int | None,
    file: Path,
) -> Head:
    """Find the logits.

    Args:
        model: The graph, which takes any batch; tensors have the names that ``names`` gives.
        feed: ``PROBES`` images as it takes them.
        answers: Where to look.
        names: Name in ``model`` of each tensor of the file that ``answers`` names.
        classes: Number of classes, if it is known.
        file: Name of the file.

    Raises:
        InputError: If no output, or more than one, could be scores of classes, or each class has a sigmoid of its own.
    """
    chains = {a.tensor: _before(model.graph, names[a.tensor]) for a in answers}
    every = [name for chain in chains.values() for name in chain]
    values = _run(model, feed, dict.fromkeys([*every, *(names[a.output] for a in answers)]))
    behind = {n for n, v in values.items() if v.ndim > 2 and len(v) == 1}
    values.update({n: _images_first(values[n]) for n in behind})
    answers = [a for a in answers if names[a.tensor] not in behind] or answers  # beside others they are states
    heads, wrong = [], []
    for answer in answers:
        chain = [n for n in chains[answer.tensor] if n in values]
        try:
            require_finite(model, feed, answer, values.get(names[answer.tensor]), file)
            heads.append(_head(answer, chain, values, names, file))
        except InputError as error:
            wrong.append(error)
    heads = _distinct(heads, values, classes)
    if not heads:
        raise wrong[0]
    if len(heads) > 1:
        raise InputError(
            f"{file} has several outputs that could be scores of classes: "
            + ", ".join(f"'{h.answer.output}' of {h.classes}" for h in heads),
            fix="say which with `output`",
        )
    return replace(heads[0], rank=_steady_rank(model, feed, heads[0]))


def _steady_rank(model: onnx.ModelProto, feed: dict[str, NDArray[Any]], head: Head) -> int:
    """Return the number of axes of the logits; 0 where only a Reshape makes them two.

    That is so behind a Squeeze of all axes, and where the images are the second axis.
    """
    one = _run(model, {name: values[:1] for name, values in feed.items()}, [head.logits])[head.logits]
    return head.rank if one.ndim == head.rank else 0


def _before(graph: onnx.GraphProto, name: str) -> list[str]:
    """Return a tensor and those before it, the nearest first."""
    made = {out: node for node in graph.node for out in node.output if out}
    constants = {i.name for i in graph.initializer}
    found, queue = {name: 0}, deque([name])
    while queue and len(found) < MOST:
        tensor = queue.popleft()
        node = made.get(tensor)
        if node is None or found[tensor] == DEPTH:
            continue
        for source in node.input:
            if source and source in made and source not in constants and source not in found:
                found[source] = found[tensor] + 1
                queue.append(source)
    return list(found)


def _run(model: onnx.ModelProto, feed: dict[str, NDArray[Any]], names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Return the values of those tensors that are arrays."""
    session = open_with_outputs(model, names)
    arrays = {o.name for o in session.get_outputs() if NUMPY.fullmatch(o.type)}
    wanted = [n for n in names if n in arrays]
    return dict(zip(wanted, session.run(wanted, feed), strict=True))


def _images_first(values: NDArray[Any]) -> NDArray[Any]:
    """Return a tensor whose images lie behind axes of one, as those of an LSTM, without these axes."""
    while values.ndim > 2 and len(values) == 1:
        values = values[0]
    return values


def _table(values: NDArray[Any]) -> NDArray[np.float64] | None:
    """Return ``[P, K]`` where a tensor has one number for each image and class, whatever axes of one it has."""
    if values.ndim < 1 or values.shape[0] != PROBES or values.dtype.kind != "f":
        return None
    if values.ndim > 2 and sum(n > 1 for n in values.shape[1:]) > 1:
        return None
    return values.reshape(PROBES, -1).astype(np.float64)


def _head(answer: Answer, chain: list[str], values: Values, names: Mapping[str, str], file: Path) -> Head:
    own = names[answer.tensor]
    table = _table(values[own]) if own in values else None
    if table is None:
        shape = list(values[own].shape) if own in values else []
        raise InputError(
            f"output '{answer.output}' of {file} must give [batch, K] for {PROBES} images",
            found=f"{shape}{SHAPES.get(len(shape), '')}" if shape else "no tensor",
            fix="give a classifier, or say with `output` which tensor holds the scores of its classes",
        )
    head = Head(**_found(own, values), form="logits", classes=table.shape[1], answer=answer, gives="logits")
    finite = np.isfinite(table).all(1)
    table = table[finite]
    half = any(values[n].dtype == np.float16 for n in chain)
    rounding = COARSE if half else FINE
    tables = {n: t for n in chain[1:] if (t := _table(values[n])) is not None and t.shape[1] == head.classes}
    if answer.output != answer.tensor:
        require_largest(answer, table, values[names[answer.output]].reshape(PROBES, -1)[finite], file)
    if head.classes > 1 and are_probabilities(table, 1e-2 if half else 1e-3):
        found = _source(table, tables, softmax, rounding)
        if found is None:
            require_shares(answer, table, file)
            return replace(head, form="probabilities", gives="probabilities")
        require_differing(answer, tables[found], file)
        return replace(head, **_found(found, values), gives="probabilities")
    if table.min() >= 0 and table.max() <= 1 and (found := _source(table, tables, _sigmoid, rounding)):
        if head.classes == 1:
            return replace(head, **_found(found, values), form="sigmoid", classes=2, gives="sigmoid")
        raise InputError(
            f"output '{answer.output}' of {file} holds {head.classes} independent probabilities (a sigmoid for each "
            "class), of which several may be high",
            fix=f"if only one class is right for an image, give `output={found.removesuffix(FOREIGN_TENSOR)}`",
        )
    require_differing(answer, table, file)
    sums = table.sum(1)
    if head.classes > 1 and table.min() >= 0 and np.ptp(sums) <= 1e-3 * sums.mean():
        raise InputError(
            f"output '{answer.output}' of {file} gives values that are at least 0 and sum to {sums.mean():g}, neither "
            "logits nor probabilities",
            fix="say with `output` which tensor before it holds either",
        )
    ones = np.abs(sums - 1) <= 1e-3
    if head.classes > 1 and table.min() >= 0 and ones.mean() >= 0.5:
        raise InputError(
            f"output '{answer.output}' of {file} gives values that are at least 0 and sum to 1 for {ones.sum()} of "
            f"{len(ones)} images, and not for the others",
            fix="say with `output` which tensor before it holds logits or probabilities",
        )
    if head.classes == 1:
        raise InputError(
            f"output '{answer.output}' of {file} gives one number for an image, which is no choice of a class",
            fix="give a graph with a sigmoid behind it, or with an output for each class",
        )
    return head


def _found(name: str, values: Values) -> dict[str, Any]:
    return {"logits": name, "rank": values[name].ndim, "cast": values[name].dtype != np.float32}


def softmax(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the softmax of each row."""
    powers = np.exp(table - table.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def _sigmoid(table: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * table)))


def are_probabilities(table: NDArray[np.float64], tolerance: float) -> bool:
    """Tell whether rows are at least 0 and sum to 1."""
    return bool(table.min() >= -1e-6 and np.abs(table.sum(1) - 1).max() <= tolerance)


def _source(
    table: NDArray[np.float64], tables: Mapping[str, NDArray[np.float64]], rule: Rule, most: float
) -> str | None:
    """Return the nearest tensor that a rule turns into a table, one with other values."""
    spread = float((table - table.mean(0)).std())
    tolerance = max(most / 50, min(most, 0.01 * spread))
    for name, values in tables.items():
        if len(values) != len(table) or not np.isfinite(values).all():
            continue
        same = np.abs(values - table).max() <= tolerance
        if not same and np.abs(rule(values) - table).max() <= tolerance:
            return name
    return None


def _distinct(heads: list[Head], values: Values, classes: int | None) -> list[Head]:
    """Drop the outputs that say again what another says, and those with another number of classes."""
    if classes is not None and any(h.classes == classes for h in heads):
        heads = [h for h in heads if h.classes == classes]
    order = {"logits": 0, "probabilities": 1, "sigmoid": 2}
    kept: list[Head] = []
    ranked = sorted(heads, key=lambda h: (h.answer.tensor != h.answer.output, order[h.gives]))
    for head in ranked:
        if not any(_same_answers(head, other, values) for other in kept):
            kept.append(head)
    return kept


def _same_answers(a: Head, b: Head, values: Values) -> bool:
    if a.classes != b.classes:
        return False
    one, two = (_probabilities(h, values) for h in (a, b))
    return bool(np.allclose(one, two, atol=1e-4))


def _probabilities(head: Head, values: Values) -> NDArray[np.float64]:
    table = values[head.logits].reshape(PROBES, -1).astype(np.float64)
    if head.form == "sigmoid":
        return np.concatenate([1 - _sigmoid(table), _sigmoid(table)], 1)
    return table if head.form == "probabilities" else softmax(table)


def head_nodes(head: Head) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return the nodes from the found tensor to ``logits`` and ``probabilities``, float32 ``[N, K]``."""
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    last = head.logits

    def add(kind: str, result: str, *more: tuple[str, NDArray[Any]], **attributes: Any) -> None:
        nonlocal last
        constants.extend(numpy_helper.from_array(value, name) for name, value in more)
        inputs = [last, *(name for name, _ in more)]
        nodes.append(helper.make_node(kind, inputs, [result], f"model/{kind}Answer", **attributes))
        last = result

    if head.cast:
        add("Cast", "qd_answer", to=TensorProto.FLOAT)
    if head.rank != 2:
        width = 1 if head.form == "sigmoid" else head.classes
        add("Reshape", "qd_table", ("qd_table_shape", np.asarray([-1, width], np.int64)))
    if head.form == "probabilities":
        add("Max", "qd_positive", ("qd_least", np.asarray(np.finfo(np.float32).tiny, np.float32)))
        add("Log", "qd_log")
    if head.form == "sigmoid":
        add("Pad", "qd_both", ("qd_pads", np.asarray([0, 1, 0, 0], np.int64)))
    nodes.append(helper.make_node("Identity", [last], ["logits"], "model/Identity"))
    nodes.append(helper.make_node("Softmax", [last], ["probabilities"], "model/Softmax", axis=-1))
    return nodes, constants


def file_answers(head: Head, values: NDArray[Any]) -> Floats:
    """Return what the file gives as ``[N, K]``: logits, or probabilities of all classes."""
    table: Floats = values.astype(np.float32)
    return np.concatenate([1 - table, table], 1) if head.gives == "sigmoid" else table
