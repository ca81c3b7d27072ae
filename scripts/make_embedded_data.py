"""Make qdeploy/data/fashion-mnist-mini.npz and examples/*.png from the published Fashion-MNIST files.

    python scripts/make_embedded_data.py [FOLDER]

Class-balanced and seeded: 200 training and 50 validation images a class from the 60,000 published training
images, 100 test images a class from the 10,000 published test images. No image occurs twice.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from qdeploy.core.files import write_bytes
from qdeploy.data.embedded import FASHION_CLASSES, FILE
from qdeploy.data.fashion_mnist import fashion_mnist_source, fetch_fashion_mnist, local_folder

SEED = 2025
PER_CLASS = {"train": 200, "val": 50, "test": 100}


def main() -> None:
    """Choose the images, write the file and one example image a class."""
    source = fashion_mnist_source(Path(sys.argv[1]) if len(sys.argv) > 1 else local_folder() or fetch_fashion_mnist())
    rng = np.random.default_rng(SEED)
    seen: set[str] = set()
    arrays: dict[str, list[np.ndarray]] = {f"{s}_{w}": [] for s in PER_CLASS for w in ("pixels", "labels")}
    examples = Path("examples")
    examples.mkdir(exist_ok=True)
    for split, count in reversed(PER_CLASS.items()):
        pool = source.records["test" if split == "test" else "train"]
        for label, name in enumerate(FASHION_CLASSES):
            members = [r.source for r in pool if r.label == label]
            chosen = []
            for i in rng.permutation(len(members)):
                digest = hashlib.sha256(members[i].tobytes()).hexdigest()
                if digest not in seen:
                    seen.add(digest)
                    chosen.append(members[i])
                if len(chosen) == count:
                    break
            arrays[f"{split}_pixels"] += chosen
            arrays[f"{split}_labels"] += [np.uint8(label)] * count
            if split == "test":
                file = name.lower().replace("/", "-").replace(" ", "-") + ".png"
                Image.fromarray(chosen[0]).save(examples / file, optimize=True)
    with FILE.with_suffix(".tmp").open("wb") as stream:
        np.savez_compressed(stream, **{k: np.stack(v) for k, v in arrays.items()})
    write_bytes(FILE, FILE.with_suffix(".tmp").read_bytes())
    FILE.with_suffix(".tmp").unlink()
    print(f"{FILE}: {FILE.stat().st_size} bytes, {len(seen)} images")


if __name__ == "__main__":
    main()
