from __future__ import annotations

import numpy as np
import onnx
import pytest

from qdeploy.core.errors import VerdictError
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Split
from qdeploy.export.calibrate import calibrate, choose_images

MODEL = """
<ir_version: 8, opset_import: ["" : 20]>
double_it (uint8[batch, 2, 2, 3] image) => (float[batch, 2, 2, 3] out) <float[batch, 2, 2, 3] x>
{
    x = Cast <to = 1> (image)
    out = Add (x, x)
}
"""


def split(values: list[int]) -> Split:
    pixels = np.stack([np.full((2, 2, 3), v, np.uint8) for v in values])
    return Split(pixels=pixels, labels=np.zeros(len(values), np.int64), hashes=tuple(map(str, values)))


def test_ranges_are_the_extremes_over_all_images() -> None:
    ticks: list[tuple[int, int]] = []
    found = calibrate(onnx.parser.parse_model(MODEL), split([5, *[7] * 20, 100]), 3, lambda *t: ticks.append(t))
    assert found.ranges == {"x": (5.0, 100.0), "out": (10.0, 200.0)}
    assert found.seed == 3
    assert ticks[-1] == (22, 22)


def test_a_tensor_that_is_not_finite_is_named() -> None:
    broken = MODEL.replace("Add (x, x)", "Div (x, x)")
    with pytest.raises(VerdictError, match="tensor 'out' is not finite"):
        calibrate(onnx.parser.parse_model(broken), split([0, 1]), 0)


def test_calibration_images_are_balanced_seeded_training_images() -> None:
    dataset = load_dataset()
    train = dataset.splits["train"]
    chosen = choose_images(train, 256, 10, seed=0)
    assert set(np.bincount(chosen.labels)) <= {25, 26}
    assert set(chosen.hashes) <= set(train.hashes)
    assert len(set(chosen.hashes)) == 256
    assert choose_images(train, 256, 10, seed=0).hashes == chosen.hashes
    assert choose_images(train, 256, 10, seed=1).hashes != chosen.hashes
    assert not set(chosen.hashes) & set(dataset.splits["test"].hashes)
    assert len(choose_images(train, 9999, 10, seed=0)) == len(train)
