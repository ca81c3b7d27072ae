"""An ONNX file from elsewhere, or a float file of qdeploy, as a source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qdeploy.core.artifact import read_artifact
from qdeploy.core.card import ONNX_FAMILY, Card, ModelInfo
from qdeploy.core.errors import InputError, NoCardError, QdeployError, VerdictError, one_line
from qdeploy.core.files import sha256_of
from qdeploy.core.git import git_commit
from qdeploy.core.metrics import Floats
from qdeploy.core.preprocessing import IMAGENET_MEAN, Preprocessing
from qdeploy.export.graph.entrance import streamline_entrance
from qdeploy.export.graph.names import FOREIGN_TENSOR
from qdeploy.export.graph.parity import HALF_TOLERANCE
from qdeploy.export.graph.temperature import without_temperature
from qdeploy.export.graph.walk import read_inside
from qdeploy.export.sources.answers import answers_of
from qdeploy.export.sources.batches import close, free_unknown_batch, image_by_image, outputs_of, with_any_batch
from qdeploy.export.sources.beside import other_normalisation, own_normalisation
from qdeploy.export.sources.float32 import HALVES, in_float32, other_floats
from qdeploy.export.sources.foreign import ForeignConfig
from qdeploy.export.sources.heads import PROBES, Head, file_answers, find_head, head_nodes
from qdeploy.export.sources.inputs import (
    Entrance,
    entrance_nodes,
    read_entrance,
    rules_for,
    values_for,
)
from qdeploy.export.sources.labels import FoundLabels, find_labels, fitting
from qdeploy.export.sources.onnx_read import LEAST_OPSET, opset_of, prepared, read_onnx
from qdeploy.export.sources.source import Reference, Source
from qdeploy.runtime.engines.onnxruntime_binding import open_binding
from qdeploy.runtime.engines.onnxruntime_options import OnnxRuntimeError
from qdeploy.runtime.trial import require_bounded

AS_IT_IS = ForeignConfig()


@dataclass(frozen=True, kw_only=True)
class OnnxSource(Source):
    """A float graph as it came, and in qdeploy's form."""

    file: str
    """Name of the file."""
    original: onnx.ModelProto
    adopted: onnx.ModelProto
    rules: Preprocessing
    labels: FoundLabels | None
    """The labels, where the file or the user says them."""
    notes: tuple[str, ...] = ()
    """What was taken, for the user to know."""
    entrance: Entrance | None = None
    """What the file takes; None for one of qdeploy."""
    head: Head | None = None
    """What it gives; None for one of qdeploy."""

    @property
    def graph(self) -> onnx.ModelProto:
        """The graph in qdeploy's form."""
        return self.adopted

    def references(self, pixels_NSSC: NDArray[np.uint8]) -> list[Reference]:
        """Run the file as it came, one from elsewhere image by image."""
        if self.entrance is None or self.head is None:
            values, output = _logits(self.original, pixels_NSSC), "logits"
        else:
            feed = values_for(self.entrance, self.rules, pixels_NSSC)
            values = answers(self.original, self.entrance, self.head, feed)
            output = "logits" if self.head.gives == "logits" else "probabilities"
        return [Reference(form=self.file, output=output, values=values)]

    def refusal(self, error: VerdictError) -> QdeployError:
        """Return a refusal of the file: what was taken for its logits does not give its answers."""
        return InputError(
            f"what is made of {self.file} does not answer as the file does: {error}",
            fix="say with `output` which of its tensors holds logits or probabilities",
        )


def onnx_source(file: Path, foreign: ForeignConfig = AS_IT_IS) -> tuple[OnnxSource, Preprocessing]:
    """Return an ONNX file as a source, and how images become its input.

    Args:
        file: Made by any tool, or a float file of qdeploy, which says itself how images become its input.
        foreign: What the graph does not say; nothing of it may be given for a file of qdeploy.

    Raises:
        InputError: If the file is no image classifier that can be used.
    """
    card = _own_card(file)
    original = read_onnx(file)
    digest = sha256_of(file.read_bytes())
    if card is not None:
        if foreign.given:
            raise InputError(f"{file} is a file of qdeploy and says itself what `{foreign.given[0]}` would say")
        return _own_source(file, card, original, digest), card.preprocessing
    free_unknown_batch(original.graph)
    came, other = original, other_floats(original)
    if other:
        original = in_float32(original)
    notes: list[str] = []
    found = find_labels(original, foreign.labels, file, notes.append)
    candidates = list(islice(found, 1))
    if candidates and candidates[0].guessed:  # no guess alone says which output is the one
        candidates += found
    counts = {len(c.labels) for c in candidates}
    entrance = read_entrance(original, foreign, file)
    rules = rules_for(entrance, foreign, file)
    graph, head, said = _adopted(original, entrance, rules, foreign, counts.pop() if len(counts) == 1 else None, file)
    if other in HALVES.values() and not _is_same(came, original, foreign, rules, head, file):
        notes.append(f"ONNX Runtime does not run {other} here, so that it was not compared with the file as it came")
    notes += [f"the file computes in {other}, at least in parts, and what is made of it in float32"] if other else []
    notes += [*entrance.said(), *([said] if said else []), head.said()]
    if entrance.channels == 3 and not entrance.raw and (hint := other_normalisation(original, rules, file)):
        notes.append(hint)
    elif not {"mean", "std", "range"} & set(foreign.given) and rules.mean == IMAGENET_MEAN:
        notes += own_normalisation(original, entrance.name)
    labels = fitting(chain(candidates, found), head.classes, notes.append)
    source = OnnxSource(
        model=ModelInfo(
            name=file.stem,
            family=ONNX_FAMILY,
            params=_params(original),
            macs=0,  # of a graph they are not counted
            input_size=rules.size,
            num_classes=head.classes,
        ),
        training={},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        git=git_commit(),
        sha256=digest,
        file=file.name,
        original=original,
        adopted=graph,
        rules=rules,
        labels=labels,
        notes=tuple(notes),
        entrance=entrance,
        head=head,
    )
    return source, rules


def _own_source(file: Path, card: Card, original: onnx.ModelProto, digest: str) -> OnnxSource:
    """Return a float file of qdeploy as a source."""
    return OnnxSource(
        model=card.model,
        training=card.origin.training,
        created=card.origin.created,
        git=card.origin.git,
        sha256=digest,
        file=file.name,
        original=original,
        adopted=_streamlined(original),
        rules=card.preprocessing,
        labels=FoundLabels(labels=card.labels, where=f"the card of {file.name}"),
    )


def _is_same(
    came: onnx.ModelProto,
    made: onnx.ModelProto,
    foreign: ForeignConfig,
    rules: Preprocessing,
    head: Head,
    file: Path,
) -> bool:
    """Refuse a file in 16-bit floats whose answers are others in float32, beyond rounding.

    Returns:
        Whether it could be run as it came.
    """
    pixels = probes(rules.size)
    pair = []
    for model in (made, came):
        try:
            entrance = read_entrance(model, foreign, file)
            pair.append(answers(model, entrance, head, values_for(entrance, rules, pixels)))
        except (InputError, OnnxRuntimeError):
            if model is made:
                raise
            return False
    difference, largest = float(np.abs(pair[0] - pair[1]).max()), float(np.abs(pair[0]).max())
    if not difference <= HALF_TOLERANCE * largest:
        raise InputError(
            f"{file} answers otherwise in float32 than in 16-bit floats: by {difference:.2g} of {largest:.2g}",
            fix="export it in float32",
        )
    return True


def answers(model: onnx.ModelProto, entrance: Entrance, head: Head, values: NDArray[Any]) -> Floats:
    """Return what a file as it came gives for images as it takes them: logits or probabilities ``[N, K]``."""
    (found,) = image_by_image(model, entrance, [head.answer.tensor], values)
    return file_answers(head, found)


def adopted(
    model: onnx.ModelProto, rules: Preprocessing, file: Path, foreign: ForeignConfig = AS_IT_IS
) -> onnx.ModelProto:
    """Return a foreign graph in qdeploy's form: uint8 images in, normalised inside, logits and probabilities out.

    Raises:
        InputError: If its operators are too old, or it is no image classifier.
    """
    return _adopted(model, read_entrance(model, foreign, file), rules, foreign, None, file)[0]


def _adopted(
    model: onnx.ModelProto,
    entrance: Entrance,
    rules: Preprocessing,
    foreign: ForeignConfig,
    classes: int | None,
    file: Path,
) -> tuple[onnx.ModelProto, Head, str]:
    found = answers_of(model, foreign.output, file)
    names = list(dict.fromkeys(n for a in found for n in (a.tensor, a.output)))
    values = values_for(entrance, rules, probes(rules.size))
    free, said = with_any_batch(model, entrance, names, values, file)
    copy = prepared(free, file)
    renamed = {n: f"{n}{FOREIGN_TENSOR}" for n in names}
    image = f"{entrance.name}{FOREIGN_TENSOR}"
    _require_unchanged(free, copy, values, {a.tensor: renamed[a.tensor] for a in found}, file)
    head = find_head(copy, {image: values}, found, renamed, classes, file)
    return _wrapped(copy, image, entrance, head, rules, file), head, said


def _require_unchanged(
    came: onnx.ModelProto, made: onnx.ModelProto, values: NDArray[Any], names: Mapping[str, str], file: Path
) -> None:
    """Refuse a graph that answers otherwise once its operators are those of a newer opset.

    Args:
        came: The graph as it came.
        made: The same with newer operators.
        values: Images as both take them.
        names: Answers of the one, and what they are called in the other.
        file: Name of the file.
    """
    expected, found = outputs_of(came, list(names), values, file), outputs_of(made, list(names.values()), values, file)
    wrong = [name for name, a, b in zip(names, expected, found, strict=True) if not close(b, a)]
    if wrong:
        old, new = opset_of(came), opset_of(made)
        change = f"from opset {old} to {new}, onnx's converter changes" if old != new else "folding constants changes"
        raise InputError(
            f"{file} cannot be brought into the form that is exported: {change} '{wrong[0]}'",
            fix=f"export it again with opset {LEAST_OPSET} or newer",
        )


def file_predictions(
    source: OnnxSource, pixels_NSSC: NDArray[np.uint8], entrance: Entrance | None, rules: Preprocessing
) -> NDArray[np.int64]:
    """Return the classes ``[N]`` that the file as it came chooses, as if it took such images by such rules."""
    if entrance is None or source.head is None:
        return _logits(source.original, pixels_NSSC).argmax(1)
    return answers(source.original, entrance, source.head, values_for(entrance, rules, pixels_NSSC)).argmax(1)


def probes(size: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return images on which outputs are told apart: noise of several kinds, and steps from dark to bright."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (PROBES, size, size, 3), np.uint8)
    coarse = rng.integers(0, 256, (PROBES, -(-size // 8), -(-size // 8), 3), np.uint8)
    blocks = coarse.repeat(8, 1).repeat(8, 2)[:, :size, :size]
    ramp = np.linspace(0, 255, size).astype(np.uint8)
    images = np.where(np.arange(PROBES)[:, None, None, None] % 2 == 0, noise, blocks)
    images[2] = ramp[None, :, None]
    images[4] //= 4
    return np.ascontiguousarray(images)


def _wrapped(
    model: onnx.ModelProto, image: str, entrance: Entrance, head: Head, rules: Preprocessing, file: Path
) -> onnx.ModelProto:
    """Put our entrance and head around a graph whose names are apart from ours."""
    graph = model.graph
    before, means = entrance_nodes(entrance, rules)
    before[-1].output[0] = image
    after, constants = head_nodes(head)
    body = list(graph.node)
    del graph.node[:]
    graph.node.extend([*before, *body, *after])
    graph.initializer.extend([*means, *constants])
    del graph.input[:]
    del graph.output[:]
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", rules.size, rules.size, 3]))
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", head.classes])
        for name in ("logits", "probabilities")
    )
    del graph.value_info[:]
    _drop_unread(graph)
    streamline_entrance(model)
    try:
        result = onnx.shape_inference.infer_shapes(model)
        onnx.checker.check_model(result)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InputError(f"onnx refuses what is made of {file}: {one_line(error)}", fix="export it again") from error
    return result


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Drop what no output needs: the file's own softmax, other outputs, and their weights."""
    needed = {o.name for o in graph.output} | read_inside(graph)
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for tensor in [i for i in graph.initializer if i.name not in needed]:
        graph.initializer.remove(tensor)


def _streamlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph of qdeploy as a newer version would have made it, before it had a temperature."""
    copy = onnx.ModelProto()
    copy.CopyFrom(without_temperature(model))
    streamline_entrance(copy)
    return model if copy == model else copy


def _own_card(file: Path) -> Card | None:
    """Return the card of a qdeploy file, or None for one from elsewhere."""
    try:
        artifact = read_artifact(file)
    except NoCardError:
        return None
    artifact.require_plain("an export")
    card = artifact.card
    if card.precision != "fp32":
        raise InputError(f"{file} is {card.precision}; give its fp32 file")
    require_bounded(artifact)
    return card


def _params(model: onnx.ModelProto) -> int:
    constants = (i for i in model.graph.initializer if i.data_type == TensorProto.FLOAT)
    return sum(int(np.prod(i.dims)) for i in constants)


def _logits(model: onnx.ModelProto, pixels_NSSC: NDArray[np.uint8]) -> Floats:
    session = open_binding(model.SerializeToString())
    parts = [session.run(["logits"], {"image": pixels_NSSC[i : i + 64]})[0] for i in range(0, len(pixels_NSSC), 64)]
    return np.concatenate(parts).astype(np.float32)
