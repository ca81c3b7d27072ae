"""Generated images in the place of data: enough to compare two forms of a model, and no more."""

from __future__ import annotations

import numpy as np

from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.dataset import GENERATED, SPLITS, Dataset, Split
from qdeploy.data.reading import image_hash_of
from qdeploy.export.sources.onnx_file import probes

ROUNDS = 4


def generated_dataset(rules: Preprocessing, labels: tuple[str, ...]) -> Dataset:
    """Return a data set of noise, blocks and ramps without classes: no accuracy can be measured on it."""
    splits = {}
    for k, name in enumerate(SPLITS):
        pixels = np.concatenate([probes(rules.size, seed=ROUNDS * k + i) for i in range(ROUNDS)])
        splits[name] = Split(
            pixels=pixels,
            labels=np.zeros(len(pixels), np.int64),
            hashes=tuple(image_hash_of(p) for p in pixels),
        )
    return Dataset(name=GENERATED, classes=labels, preprocessing=rules, splits=splits, problems=(), generated=True)
