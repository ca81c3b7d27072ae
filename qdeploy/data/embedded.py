"""The small real data set inside the package: 3,500 images of Fashion-MNIST (MIT licence, Zalando SE).

``scripts/make_embedded_data.py`` makes the file; ``fashion-mnist-mini.LICENSE`` stands beside it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qdeploy.core.progress import Progress
from qdeploy.data.dataset import SPLITS
from qdeploy.data.source import Place, Reader, Record, Source

NAME = "fashion-mnist-mini"
FILE = Path(__file__).parent / f"{NAME}.npz"
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

IMAGES = {"train": 2000, "val": 500, "test": 1000}


def embedded_source() -> Source:
    """Return the embedded set: 2,000 training, 500 validation and 1,000 test images, 28x28 grey, balanced."""
    with np.load(FILE, allow_pickle=False) as arrays:
        records = {
            split: [
                Record(pixels, int(label))
                for pixels, label in zip(arrays[f"{split}_pixels"], arrays[f"{split}_labels"], strict=True)
            ]
            for split in SPLITS
        }
    return Source(name=NAME, classes=FASHION_CLASSES, records=records)


def _find(_: Progress | None) -> Place:
    return Place(name=NAME, path=FILE, read=embedded_source, files=(FILE,))


READER = Reader(find=_find, recognise=lambda path: None, classes=len(FASHION_CLASSES), images=IMAGES)
