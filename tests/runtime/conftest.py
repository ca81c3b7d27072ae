"""A small labelled folder whose classes are some of the shipped model's, in another order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qdeploy.data.embedded import FASHION_CLASSES, embedded_source

SUBSET = ("Ankle boot", "Bag", "Trouser")
"""In the order of folders; the model's is Trouser, Bag, Ankle boot."""


@pytest.fixture(scope="session")
def boots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three of the ten classes: 20 test images each, and an unreadable file."""
    root = tmp_path_factory.mktemp("data") / "boots"
    for label in SUBSET:
        (root / label).mkdir(parents=True)
    counts: Counter[str] = Counter()
    for record in embedded_source().records["test"]:
        label = FASHION_CLASSES[record.label]
        if label in SUBSET and counts[label] < 20:
            Image.fromarray(np.asarray(record.source)).save(root / label / f"{counts[label]:02}.png")
            counts[label] += 1
    (root / "Bag" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return root
