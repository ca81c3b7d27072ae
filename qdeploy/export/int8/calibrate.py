"""Histograms of every tensor of a graph over real images: one pass, constant memory, kept for the next export."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from qdeploy.core.errors import InputError
from qdeploy.core.progress import Progress
from qdeploy.data.dataset import Dataset, Split
from qdeploy.export.graph.finite import called, require_finite
from qdeploy.export.graph.inner_outputs import open_with_outputs
from qdeploy.export.int8.histogram import Histogram
from qdeploy.export.int8.ranges import METHODS, Range, mse, range_of
from qdeploy.export.int8.scales import has_scale
from qdeploy.export.kept import keep, key_of, read_kept

BATCH = 8
"""Images per run: every intermediate tensor of a batch is in memory at once."""
HELD_EVERY = 4
"""Each fourth batch is kept apart: it judges the ranges that the others suggest."""
FORMAT = "3"
"""Format version of the kept histograms; other versions are not read."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was seen of each float tensor, and the images it was seen on."""

    fitted: Mapping[str, Histogram]
    held: Mapping[str, Histogram]
    """Histograms of the batches that were kept apart; empty if there was only one batch."""
    image_hashes: tuple[str, ...]
    seed: int
    _found: dict[tuple[str, str, bool], Range] = field(init=False, repr=False, default_factory=dict)

    @property
    def sha256(self) -> str:
        """Hash of the images, independent of their order."""
        return hashlib.sha256("\n".join(sorted(self.image_hashes)).encode()).hexdigest()

    def ranges(self, method: str, symmetric: bool = False) -> dict[str, Range]:
        """Return every tensor's range by one method, or with ``mixed`` by the best for each.

        The best is the one whose range, made from most of the images, has the least squared error on the others.
        """
        best = {n: self._best(n, symmetric) for n in self._seen()} if method == "mixed" else {}
        return {name: self._range(name, best[name] if best else method, symmetric) for name in self._seen()}

    def _seen(self) -> list[str]:
        """Return the tensors that had values, all of them finite; the others stay in float."""
        return [n for n, h in self.fitted.items() if h.is_finite and (n not in self.held or self.held[n].is_finite)]

    def _range(self, name: str, method: str, symmetric: bool) -> Range:
        """Return a tensor's range on all images; it is searched for once."""
        key = (name, method, symmetric)
        if key not in self._found:
            histogram = self.fitted[name]
            whole = histogram + self.held[name] if name in self.held else histogram
            extremes = range_of(whole, "minmax", symmetric)
            self._found[key] = range_of(whole, method, symmetric) if has_scale(extremes) else extremes
        return self._found[key]

    def _best(self, name: str, symmetric: bool) -> str:
        if not has_scale(range_of(self.fitted[name], "minmax", symmetric)):
            return "minmax"
        judge = self.held.get(name, self.fitted[name])
        return min(METHODS, key=lambda method: mse(judge, range_of(self.fitted[name], method, symmetric)))


def choose_images(dataset: Dataset, count: int, seed: int) -> Split:
    """Choose about ``count`` training images, seeded and as evenly over the classes as the split allows.

    Raises:
        InputError: If one of them is also a validation or test image: accuracy would be measured on calibrated images.
    """
    train = dataset.splits["train"]
    rng = np.random.default_rng(seed)
    queues = [list(rng.permutation(np.flatnonzero(train.labels == k))) for k in range(len(dataset.classes))]
    chosen: list[int] = []
    while len(chosen) < min(count, len(train)):
        chosen.extend(int(queue.pop()) for queue in queues if queue)
    images = train.take(np.asarray(chosen[:count], np.int64))
    for name in ("val", "test"):
        shared = set(images.hashes) & set(dataset.splits[name].hashes)
        if shared:
            raise InputError(
                f"{len(shared)} calibration images are also in the {name} split (one has the hash "
                f"{min(shared)}); remove the repeated images from the data"
            )
    return images


def random_images(like: Split, count: int, seed: int) -> Split:
    """Return seeded noise of the size of some images: it says nothing about what the model will see."""
    shape = (count, *like.pixels.shape[1:])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    hashes = tuple(hashlib.sha256(p.tobytes()).hexdigest()[:16] for p in pixels)
    return Split(pixels=pixels, labels=np.zeros(count, np.int64), hashes=hashes)


def calibrate(model: onnx.ModelProto, images: Split, seed: int, progress: Progress | None = None) -> Calibration:
    """Run images through a float graph and collect the histogram of each tensor.

    The result is kept in the cache under the hash of graph and images: a second export does not run them again.

    Args:
        model: A graph with one uint8 input ``[batch, S, S, 3]``.
        images: The calibration images.
        seed: What they were chosen with, for the record.
        progress: Called with the number of images done and their total.

    Raises:
        InputError: If an answer is not finite.
    """
    graph = model.SerializeToString(deterministic=True)
    key = key_of([FORMAT, ort.__version__, graph, *images.hashes])
    data = read_kept("calibration", key)
    found = _collect(model, images, progress) if data is None else _histograms(data)
    if data is None:
        keep("calibration", key, _bytes(*found))
    fitted, held = found
    return Calibration(fitted=fitted, held=held, image_hashes=images.hashes, seed=seed)


Histograms = dict[str, Histogram]


def _collect(model: onnx.ModelProto, images: Split, progress: Progress | None) -> tuple[Histograms, Histograms]:
    names = _float_tensors(model)
    outputs = {o.name for o in model.graph.output}
    session = open_with_outputs(model, names)
    fitted: Histograms = {name: Histogram() for name in names}
    held: Histograms = {}
    for i, start in enumerate(range(0, len(images), BATCH)):
        batch: NDArray[np.uint8] = images.pixels[start : start + BATCH]
        apart = i % HELD_EVERY == HELD_EVERY - 1
        for name, value in zip(names, session.run(names, {"image": batch}), strict=True):
            if name in outputs:
                require_finite(model, value, batch, partial(called, "calibration", images.hashes, start))
            (held.setdefault(name, Histogram()) if apart else fitted[name]).add(value)
        if progress:
            progress(min(start + BATCH, len(images)), len(images))
    return fitted, held


def _float_tensors(model: onnx.ModelProto) -> list[str]:
    infos = (*model.graph.value_info, *model.graph.output)
    floats = {v.name for v in infos if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    return [name for node in model.graph.node for name in node.output if name in floats]


def _bytes(fitted: Histograms, held: Histograms) -> bytes:
    arrays: dict[str, NDArray[Any]] = {}
    for part, histograms in (("fitted", fitted), ("held", held)):
        names = list(histograms)
        arrays[f"{part}_names"] = np.asarray(names, np.str_)
        arrays[f"{part}_counts"] = np.asarray([histograms[n].counts for n in names], np.int64)
        arrays[f"{part}_spans"] = np.asarray(
            [(h.low, h.high, h.limit, h.batches) for h in histograms.values()], np.float64
        )
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def _histograms(data: bytes) -> tuple[Histograms, Histograms]:
    """Read what ``_bytes`` wrote."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        fitted, held = (
            {
                str(name): Histogram(low=float(s[0]), high=float(s[1]), limit=float(s[2]), counts=c, batches=int(s[3]))
                for name, c, s in zip(
                    arrays[f"{part}_names"], arrays[f"{part}_counts"], arrays[f"{part}_spans"], strict=True
                )
            }
            for part in ("fitted", "held")
        )
    return fitted, held
