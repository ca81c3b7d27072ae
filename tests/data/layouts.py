"""Small data sets in the exact layouts of the published ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WNIDS = ("n02124075", "n01443537", "n03126707", "n04067472")
"""Not sorted, as the published ones."""
WORDS = (
    "n01443537\tgoldfish, Carassius auratus\nn02012849\tcrane\nn02124075\tEgyptian cat\nn03126707\tcrane\n"
    "n04067472\tcrane, hoist\n"
)


def jpeg(rng: np.random.Generator, grey: bool = False) -> bytes:
    stream = io.BytesIO()
    shape = (64, 64) if grey else (64, 64, 3)
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def make_tiny_imagenet(parent: Path, train: int = 15, val: int = 12) -> Path:
    """Write ``tiny-imagenet-200/`` with four classes; gives its path."""
    root = parent / "tiny-imagenet-200"
    rng = np.random.default_rng(0)
    box = "\t0\t10\t63\t58"
    for wnid in WNIDS:
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True)
        names = [f"{wnid}_{i}.JPEG" for i in range(train)]
        for i, name in enumerate(names):
            (folder / name).write_bytes(jpeg(rng, grey=i == 1))
        (folder.parent / f"{wnid}_boxes.txt").write_text("".join(f"{n}{box}\n" for n in names))
    for part, count in (("val", val), ("test", 3)):
        (root / part / "images").mkdir(parents=True)
        for i in range(count):
            (root / part / "images" / f"{part}_{i}.JPEG").write_bytes(jpeg(rng))
    lines = [f"val_{i}.JPEG\t{WNIDS[i % len(WNIDS)]}{box}\n" for i in range(val)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    (root / "words.txt").write_text(WORDS)
    return root


def zip_of(root: Path) -> Path:
    """Pack a folder as published: with its own name on top and entries for folders."""
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in [root, *sorted(root.rglob("*"))]:
            archive.write(file, file.relative_to(root.parent))
    return path


def make_cifar(parent: Path, classes: int, per_class: int = 20) -> Path:
    """Write ``cifar-10-batches-bin/`` or ``cifar-100-binary/``; every batch and split is balanced."""
    rng = np.random.default_rng(classes)
    names = [f"class_{k}" for k in range(classes)]
    if classes == 10:
        root = parent / "cifar-10-batches-bin"
        files = {**{f"data_batch_{i}.bin": per_class // 5 for i in range(1, 6)}, "test_batch.bin": 2}
        meta = {"batches.meta.txt": names, "readme.html": []}
    else:
        root = parent / "cifar-100-binary"
        files = {"train.bin": per_class, "test.bin": 1}
        meta = {"fine_label_names.txt": names, "coarse_label_names.txt": [f"coarse_{k}" for k in range(20)]}
    root.mkdir()
    for name, count in files.items():
        labels = np.tile(np.arange(classes, dtype=np.uint8), count)[:, None]
        if classes == 100:
            labels = np.concatenate([labels // 5, labels], axis=1)
        pixels = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        (root / name).write_bytes(np.concatenate([labels, pixels], axis=1).tobytes())
    for name, lines in meta.items():
        (root / name).write_text("\n".join(lines) + "\n\n")
    return root


def tar_of(root: Path) -> Path:
    """Pack a folder as published."""
    path = root.parent / {"cifar-10-batches-bin": "cifar-10-binary.tar.gz"}.get(root.name, f"{root.name}.tar.gz")
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        archive.add(root, root.name)
    return path


def write_idx(path: Path, values: NDArray[np.uint8]) -> bytes:
    header = b"\x00\x00\x08" + bytes([values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()))
    return header + values.tobytes()


def make_fashion_mnist(root: Path) -> dict[str, str]:
    """Write the four files with 600 + 100 random images; gives their checksums."""
    root.mkdir()
    rng = np.random.default_rng(0)
    sums = {}
    for stem, count in (("train", 600), ("t10k", 100)):
        for kind, values in (
            ("images-idx3", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)),
            ("labels-idx1", (np.arange(count) % 10).astype(np.uint8)),
        ):
            name = f"{stem}-{kind}-ubyte.gz"
            sums[name] = hashlib.sha256(write_idx(root / name, values)).hexdigest()
    return sums
