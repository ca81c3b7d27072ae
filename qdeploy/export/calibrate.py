"""Ranges of every tensor of a graph over real images, in one pass and constant memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from qdeploy.core.errors import VerdictError
from qdeploy.data.dataset import Split

BATCH = 8
"""Images per run: every intermediate tensor of a batch is in memory at once."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Smallest and largest value of each float tensor, and the images they were seen on."""

    ranges: dict[str, tuple[float, float]]
    image_hashes: tuple[str, ...]
    seed: int

    @property
    def sha256(self) -> str:
        """Hash of the images, independent of their order."""
        return hashlib.sha256("\n".join(sorted(self.image_hashes)).encode()).hexdigest()


def choose_images(train: Split, count: int, num_classes: int, seed: int) -> Split:
    """Choose about ``count`` images of the training split, seeded and as evenly over the classes as it allows."""
    rng = np.random.default_rng(seed)
    queues = [list(rng.permutation(np.flatnonzero(train.labels == k))) for k in range(num_classes)]
    chosen: list[int] = []
    while len(chosen) < min(count, len(train)):
        chosen.extend(int(queue.pop()) for queue in queues if queue)
    return train.take(np.asarray(chosen[:count], np.int64))


def calibrate(
    model: onnx.ModelProto, images: Split, seed: int, tick: Callable[[int, int], None] | None = None
) -> Calibration:
    """Run images through a float graph and keep the smallest and largest value of each tensor.

    Args:
        model: A graph with one uint8 input ``[batch, S, S, 3]``.
        images: The calibration images.
        seed: What they were chosen with, for the record.
        tick: Called with the number of images done and their total.

    Raises:
        VerdictError: If a tensor is not finite.
    """
    session, names = _session_with_all_outputs(model)
    low = dict.fromkeys(names, np.inf)
    high = dict.fromkeys(names, -np.inf)
    for start in range(0, len(images), BATCH):
        batch: NDArray[np.uint8] = images.pixels[start : start + BATCH]
        for name, value in zip(names, session.run(names, {"image": batch}), strict=True):
            low[name] = min(low[name], float(value.min()))
            high[name] = max(high[name], float(value.max()))
        if tick:
            tick(min(start + BATCH, len(images)), len(images))
    broken = [n for n in names if not np.isfinite([low[n], high[n]]).all()]
    if broken:
        raise VerdictError(f"calibration failed: tensor '{broken[0]}' is not finite on the training images")
    return Calibration(ranges={n: (low[n], high[n]) for n in names}, image_hashes=images.hashes, seed=seed)


def _session_with_all_outputs(model: onnx.ModelProto) -> tuple[ort.InferenceSession, list[str]]:
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    infos = (*wide.graph.value_info, *wide.graph.output)
    floats = {v.name for v in infos if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    names = [name for node in wide.graph.node for name in node.output if name in floats]
    present = {o.name for o in wide.graph.output}
    wide.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in present
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(wide.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, names
