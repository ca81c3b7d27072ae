"""Runs a model file with some of its inner tensors as further outputs and makes maps of them.

The file is not changed: the outputs are added to a copy of its bytes in memory, which the same runtime opens with the
same optimizations, so that the maps are those of the kernels that answer. No gradient is needed, and no torch.

Array names: C channels, H height, W width, K classes, N tokens, P positions in a patch, D width of a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.checks.explain.graph import LinearEnd, Picks, Reader
from qdeploy.core.artifact import ONNX_FILES, SHIPPED, Artifact, model_files, newest_export, read_artifact
from qdeploy.core.errors import ArtifactError, InputError, near_miss
from qdeploy.core.onnx_bytes import with_outputs
from qdeploy.native.onnx_graph import read_graph
from qdeploy.runtime.classifier import ImageLike, not_finite
from qdeploy.runtime.engines.onnxruntime_binding import FAILURES, open_binding
from qdeploy.runtime.engines.onnxruntime_options import OnnxRuntimeError

Floats = NDArray[np.float64]
ANSWERS = ("logits", "probabilities")
PATCH = 2
"""Side of a MobileViT's patches, whose positions attend apart."""


@dataclass(frozen=True, kw_only=True)
class ClassMap:
    """What each position adds to the logit of a class."""

    label: str
    index: int
    """Class number of the label."""
    values: Floats
    """``[H, W]``, in units of the logit; its mean and the bias make the logit."""
    bias: float
    logit: float
    """What the file itself answers."""

    @property
    def remainder(self) -> float:
        """The logit minus the map's mean and the bias: rounding, of INT8 behind the pooling."""
        return self.logit - float(self.values.mean()) - self.bias


@dataclass(frozen=True, kw_only=True)
class PickedTokens:
    """The tokens that a head keeps."""

    side: int
    """Rows and columns of the square of all tokens."""
    picked: tuple[tuple[int, int], ...]
    """Row and column of each, the best first."""


@dataclass(frozen=True, kw_only=True)
class AttentionMap:
    """How much each position is attended to, mean over queries and heads."""

    layer: int
    """Which attention of the graph it is, from 1."""
    values: Floats
    """``[H, W]``, 1 where a position has the share that it would have if all had the same."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a file answers to an image, and where it looks."""

    path: str
    precision: str
    label: str
    """The answer."""
    probability: float
    """Of the answer, in [0, 1]."""
    pixels: NDArray[np.uint8] = field(repr=False)
    """The image as the model sees it, ``[S, S, 3]``."""
    class_map: ClassMap | None
    """None if the model does not end in average pooling and a linear layer."""
    tokens: PickedTokens | None
    """None if the model picks none."""
    attention: tuple[AttentionMap, ...]
    """Empty if it was not asked for."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, without the pixels."""
        shown, tokens = self.class_map, self.tokens
        return {
            "path": self.path,
            "precision": self.precision,
            "label": self.label,
            "probability": self.probability,
            "class_map": shown and {
                "label": shown.label,
                "index": shown.index,
                "logit": shown.logit,
                "bias": shown.bias,
                "remainder": shown.remainder,
                "values": shown.values.tolist(),
            },
            "tokens": tokens and {"side": tokens.side, "picked": [list(place) for place in tokens.picked]},
            "attention": [{"layer": a.layer, "values": a.values.tolist()} for a in self.attention],
        }  # fmt: skip


class Explainer:
    """An opened model file that shows where it looks. Safe to call from several threads."""

    def __init__(self, artifact: Artifact, *, attention: bool = False) -> None:
        """Open a file.

        Args:
            artifact: An ONNX file of any precision.
            attention: Whether to show what the layers attend to.

        Raises:
            ArtifactError: If it is an engine's file, or ONNX Runtime refuses it.
            InputError: If there is nothing in it that can be shown.
        """
        if artifact.engine is not None:
            raise ArtifactError(f"{artifact.path} is an engine, whose inside cannot be seen", fix="give the ONNX file")
        self.artifact, self.card = artifact, artifact.card
        reader = Reader(read_graph(artifact.data))
        self._end: LinearEnd | None = reader.linear_end(ANSWERS[0])
        self._picks: list[Picks] = reader.picks()
        self._weights = reader.softmaxes() if attention else []
        separable = attention and self.card.model.config.get("attention") == "separable"
        self._contexts = reader.context_parts() if separable else []
        inner = [
            *([self._end.features] if self._end else []),
            *(name for pick in self._picks for name in (pick.scores, pick.indices)),
            *self._weights,
            *self._contexts,
        ]
        if not inner:
            raise self._nothing(attention)
        self._names = [*ANSWERS, *(name for name in dict.fromkeys(inner) if name not in ANSWERS)]
        try:
            self._session = open_binding(
                with_outputs(artifact.data, self._names[len(ANSWERS) :]), threads=1, target=self.card.target
            )
        except OnnxRuntimeError as error:
            raise ArtifactError(f"ONNX Runtime refuses {artifact.path}: {error}") from error

    def __call__(self, image: ImageLike, label: str | None = None) -> Explanation:
        """Explain the answer to an image (path, file's bytes, PIL image or uint8 array ``[H, W, 3]``).

        Args:
            image: The image.
            label: The class whose map is wanted; by default the answer.

        Raises:
            ImageError: If the image cannot be read, or the answer is not finite.
            InputError: If there is no such label, or nothing can be shown.
        """
        labels = self.card.labels
        if label is not None and label not in labels:
            raise InputError(
                f"the model has no label '{label}'{near_miss(label, labels)}", fix="`qdeploy inspect` lists them"
            )
        pixels = self.card.preprocessing(Path(image) if isinstance(image, str) else image)
        found = self._run(pixels)
        logits, probabilities = (found[name][0] for name in ANSWERS)
        if not np.isfinite(probabilities).all():
            raise not_finite()
        best = int(logits.argmax())
        explanation = Explanation(
            path=str(self.artifact.path),
            precision=self.card.precision,
            label=labels[best],
            probability=float(probabilities[best]),
            pixels=pixels,
            class_map=self._class_map(found, best if label is None else labels.index(label)),
            tokens=self._tokens(found),
            attention=tuple(self._attention(found)),
        )
        if not (explanation.class_map or explanation.tokens or explanation.attention):
            raise self._nothing(bool(self._weights))
        return explanation

    def _run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        try:
            values = self._session.run(self._names, {self._session.get_inputs()[0].name: pixels[None]})
        except FAILURES as error:
            raise ArtifactError(f"ONNX Runtime failed with {self.artifact.path}: {error}") from error
        return dict(zip(self._names, values, strict=True))

    def _class_map(self, found: dict[str, NDArray[Any]], index: int) -> ClassMap | None:
        if self._end is None:
            return None
        features = found[self._end.features][0].astype(np.float64)
        weights, bias = self._end.weights, self._end.bias
        if features.ndim != 3 or len(features) != (len(self.card.labels) if weights is None else weights.shape[1]):
            return None
        return ClassMap(
            label=self.card.labels[index],
            index=index,
            values=features[index] if weights is None else np.tensordot(weights[index], features, 1),
            bias=float(bias[0] if len(bias) == 1 else bias[index]),
            logit=float(found[ANSWERS[0]][0, index]),
        )

    def _tokens(self, found: dict[str, NDArray[Any]]) -> PickedTokens | None:
        for pick in self._picks:
            scores, indices = found[pick.scores], found[pick.indices]
            if scores.ndim == 2 and (side := _side(scores.shape[1])):
                places = tuple((int(i) // side, int(i) % side) for i in indices[0])
                return PickedTokens(side=side, picked=places)
        return None

    def _attention(self, found: dict[str, NDArray[Any]]) -> Iterator[AttentionMap]:
        shares = [*(_received(found[name][0]) for name in self._weights)]
        shares += [_shares(found[name][0]) for name in self._contexts]
        for layer, share in enumerate((s for s in shares if s is not None), 1):
            yield AttentionMap(layer=layer, values=share)

    def _nothing(self, attention: bool) -> InputError:
        return InputError(
            f"{self.artifact.path} has nothing to show: it does not end in average pooling and a linear layer, and "
            f"picks no tokens{' and attends to none' if attention else ''}",
            fix="give another model" if attention else "give another model, or `attention` if it has one",
        )


def explain(
    images: Iterable[ImageLike],
    models: Sequence[str | Path] | None = None,
    *,
    label: str | None = None,
    attention: bool = False,
) -> Iterator[list[Explanation]]:
    """Explain what model files answer to images.

    Args:
        images: What ``qdeploy.load()`` classifies.
        models: Model files or export folders, of which all ONNX files are taken; by default the model that ships in the
            package, fp32 and INT8.
        label: The class whose map is wanted; by default each file's own answer.
        attention: Whether to show what the layers attend to.

    Returns:
        For each image one explanation a file.

    Raises:
        ArtifactError: If a file is not usable.
        InputError: If a model shows nothing, or there is no such label.
        ImageError: If an image cannot be read.
    """
    files = files_of([SHIPPED] if models is None else [Path(m) for m in models])
    explainers = [Explainer(read_artifact(file), attention=attention) for file in files]
    return ([explainer(image, label) for explainer in explainers] for image in images)


def files_of(models: Sequence[Path]) -> list[Path]:
    """Return the ONNX files of model files and export folders; of nothing those of the newest export, else shipped."""
    return [f for path in models or [newest_export() or SHIPPED] for f in model_files(path, (ONNX_FILES,))]


def _side(count: int) -> int | None:
    """Return the side of a square of so many tokens."""
    side = math.isqrt(count)
    return side if side * side == count else None


def _received(weights: NDArray[Any]) -> Floats | None:
    """Return how much each position is attended to, of weights ``[heads, N, N]`` or ``[P, heads, N, N]``."""
    if weights.ndim not in (3, 4) or not _side(weights.shape[-1]) or weights.shape[-2] != weights.shape[-1]:
        return None
    share = weights.astype(np.float64).mean(axis=(-3, -2)) * weights.shape[-1]
    return _tiled(share) if weights.ndim == 4 else share.reshape(_side(share.size), -1)


def _shares(parts_PND: NDArray[Any]) -> Floats | None:
    """Return the size of each token's part of the context vector over the mean size."""
    if parts_PND.ndim != 3 or not _side(parts_PND.shape[1]):
        return None
    size = np.linalg.norm(parts_PND.astype(np.float64), axis=2)
    return _tiled(size / np.maximum(size.mean(axis=1, keepdims=True), 1e-30))


def _tiled(share_PN: Floats) -> Floats | None:
    """Put the positions of 2x2 patches back to where they are in the map."""
    side = _side(share_PN.shape[1])
    if len(share_PN) != PATCH * PATCH or side is None:
        return None
    return share_PN.reshape(PATCH, PATCH, side, side).transpose(2, 0, 3, 1).reshape(PATCH * side, PATCH * side)
