from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from qdeploy.core.errors import InputError
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Split
from qdeploy.export.int8.calibrate import calibrate, choose_images

MODEL = """
<ir_version: 8, opset_import: ["" : 20]>
double_it (uint8[batch, 2, 2, 3] image) => (float[batch, 2, 2, 3] out) <float[batch, 2, 2, 3] x>
{
    x = Cast <to = 1> (image)
    out = Add (x, x)
}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path))
    return tmp_path / "calibration"


def split(values: list[int]) -> Split:
    pixels = np.stack([np.full((2, 2, 3), v, np.uint8) for v in values])
    return Split(pixels=pixels, labels=np.zeros(len(values), np.int64), hashes=tuple(map(str, values)))


def test_ranges_are_the_extremes_over_all_images() -> None:
    ticks: list[tuple[int, int]] = []
    found = calibrate(onnx.parser.parse_model(MODEL), split([5, *[7] * 30, 100]), 3, lambda *t: ticks.append(t))
    assert found.ranges("minmax") == {"x": (0.0, 100.0), "out": (0.0, 200.0)}
    assert found.ranges("minmax", symmetric=True)["x"] == (-100.0, 100.0)
    assert found.held["x"].high == 100.0  # the fourth batch is held apart, and still counts
    assert found.seed == 3
    assert ticks[-1] == (32, 32)


def test_a_second_calibration_reads_what_the_first_kept(cache: Path) -> None:
    model, images = onnx.parser.parse_model(MODEL), split([5, 7, *range(40, 90)])
    first = calibrate(model, images, 0)
    (kept,) = cache.iterdir()
    again = calibrate(model, images, 0, lambda done, total: pytest.fail("ran the images again"))
    for method in ("minmax", "percentile", "mse", "mixed"):
        assert again.ranges(method) == first.ranges(method)
    calibrate(model, images.take(np.arange(3)), 0)  # other images: another entry
    assert len(list(cache.iterdir())) == 2
    kept.write_bytes(kept.read_bytes()[:100])
    assert calibrate(model, images, 0).ranges("mse") == first.ranges("mse")


def test_a_tensor_that_is_not_finite_is_named() -> None:
    broken = MODEL.replace("Add (x, x)", "Div (x, x)")
    with pytest.raises(InputError, match="image 0 .hash 0. is not finite: tensor 'out', made by Div, .* to hold NaN"):
        calibrate(onnx.parser.parse_model(broken), split([0, 1]), 0)


def test_calibration_images_are_balanced_seeded_training_images() -> None:
    dataset = load_dataset()
    train = dataset.splits["train"]
    chosen = choose_images(dataset, 256, seed=0)
    assert set(np.bincount(chosen.labels)) <= {25, 26}
    assert set(chosen.hashes) <= set(train.hashes)
    assert len(set(chosen.hashes)) == 256
    assert choose_images(dataset, 256, seed=0).hashes == chosen.hashes
    assert choose_images(dataset, 256, seed=1).hashes != chosen.hashes
    assert len(choose_images(dataset, 9999, seed=0)) == len(train)


def test_an_image_of_two_splits_is_refused() -> None:
    dataset = load_dataset()
    mixed = replace(dataset, splits={**dataset.splits, "test": dataset.splits["train"]})
    with pytest.raises(InputError, match="256 calibration images are also in the test split"):
        choose_images(mixed, 256, seed=0)
