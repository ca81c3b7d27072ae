from __future__ import annotations

import numpy as np
import pytest

from qdeploy.data import cifar, fashion_mnist, tiny_imagenet
from qdeploy.data.catalog import READERS
from qdeploy.data.source import Record, Source
from qdeploy.data.splits import expected_counts

PIXELS = np.zeros((1, 1), np.uint8)
PUBLISHED = {
    "tiny-imagenet": (100_000, 10_000, tiny_imagenet.HOLDOUT),
    "cifar-10": (50_000, 10_000, cifar.HOLDOUT),
    "cifar-100": (50_000, 10_000, cifar.HOLDOUT),
    "fashion-mnist": (60_000, 10_000, fashion_mnist.HOLDOUT),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_images_of_a_published_set_are_known_before_it_is_downloaded(name: str) -> None:
    train, test, holdout = PUBLISHED[name]
    reader = READERS[name]
    records = {
        split: [Record(PIXELS, i % reader.classes) for i in range(count)]
        for split, count in (("train", train), ("test", test))
    }
    classes = tuple(map(str, range(reader.classes)))
    assert reader.images == expected_counts(Source(name=name, classes=classes, records=records, holdout=holdout))


def test_the_embedded_set_has_the_images_that_it_says() -> None:
    reader = READERS["fashion-mnist-mini"]
    assert reader.images == expected_counts(reader.find(None).read())
