"""Which validation images choose INT8 and which judge it."""

from __future__ import annotations

import numpy as np
import pytest

from qdeploy.data.dataset import Split
from qdeploy.export.int8.loss import choosing_and_judging


def split(labels: list[int]) -> Split:
    count = len(labels)
    pixels = np.zeros((count, 2, 2, 3), np.uint8)
    return Split(pixels=pixels, labels=np.asarray(labels, np.int64), hashes=tuple(map(str, range(count))))


@pytest.mark.parametrize("shuffled", [False, True])
def test_both_parts_have_all_classes_and_no_image_in_common(shuffled: bool) -> None:
    labels = np.repeat(np.arange(10), 12)
    if shuffled:
        labels = np.random.default_rng(0).permutation(labels)
    choosing, judging = choosing_and_judging(split(labels.tolist()))
    assert len(choosing) == 40
    assert len(judging) == 80
    assert not set(choosing.hashes) & set(judging.hashes)
    assert np.bincount(choosing.labels).tolist() == [4] * 10
    assert np.bincount(judging.labels).tolist() == [8] * 10
    assert len(set(choosing.labels[:10].tolist())) > 3  # the first ones alone, too, are of many classes
    again, _ = choosing_and_judging(split(labels.tolist()))
    assert again.hashes == choosing.hashes


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images_still_choose_and_judge(count: int) -> None:
    choosing, judging = choosing_and_judging(split([0] * count))
    assert len(choosing) >= 1
    assert len(judging) >= 1
    assert len(set(choosing.hashes) | set(judging.hashes)) == count
