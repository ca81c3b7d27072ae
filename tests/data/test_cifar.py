from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from qdeploy.core.errors import DataError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.catalog import find_place, load_dataset
from tests.data.layouts import make_cifar, tar_of
from tests.data.web import serving


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("classes", "sizes"),
    [(10, {"train": 180, "val": 20, "test": 20}), (100, {"train": 900, "val": 100, "test": 100})],
)
def test_the_published_layout_is_read_from_folder_and_archive(
    tmp_path: Path, classes: int, sizes: dict[str, int]
) -> None:
    root = make_cifar(tmp_path, classes, per_class=20 if classes == 10 else 10)
    dataset = load_dataset(str(root), Preprocessing(size=16))
    assert dataset.name == f"cifar-{classes}"
    assert {k: len(v) for k, v in dataset.splits.items()} == sizes
    assert dataset.classes == tuple(f"class_{k}" for k in range(classes))
    for split in dataset.splits.values():
        assert len(set(np.bincount(split.labels))) == 1
    assert load_dataset(str(tar_of(root)), Preprocessing(size=16)).sha256 == dataset.sha256


def test_channels_and_labels_are_where_the_publisher_puts_them(tmp_path: Path) -> None:
    root = make_cifar(tmp_path, 100, per_class=10)
    raw = (root / "test.bin").read_bytes()
    third = raw[2 * 3074 : 3 * 3074]  # coarse label, fine label, 1,024 red, 1,024 green, 1,024 blue
    test = load_dataset(str(root), Preprocessing(size=32)).splits["test"]
    assert test.labels[2] == third[1] == 2
    assert test.pixels[2, 0, 5].tolist() == [third[2 + 5], third[2 + 1024 + 5], third[2 + 2048 + 5]]
    assert test.pixels[2, 31, 0].tolist() == [third[2 + 31 * 32 + 1024 * c] for c in range(3)]


@pytest.mark.parametrize("place", ["data/cifar-10", "cifar-10-batches-bin", "data/cifar-10-binary.tar.gz"])
def test_it_is_found_by_name_in_the_usual_places(tmp_path: Path, place: str) -> None:
    (tmp_path / "x").mkdir()
    root = make_cifar(tmp_path / "x", 10)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tar_of(root) if place.endswith("gz") else root).rename(tmp_path / place)
    assert find_place("cifar-10").path == tmp_path / place


def test_an_archive_is_recognised_under_any_name(tmp_path: Path) -> None:
    archive = tar_of(make_cifar(tmp_path, 100, per_class=10)).rename(tmp_path / "mine.tgz")
    assert find_place(str(archive)).name == "cifar-100"


def test_a_file_that_is_not_the_published_one_is_not_kept(tmp_path: Path) -> None:
    from qdeploy.data.cifar import CIFAR_10, fetch_cifar

    archive = tar_of(make_cifar(tmp_path, 10))
    with serving() as web:
        web.files[archive.name] = archive.read_bytes()
        with pytest.raises(DataError, match=r"cifar-10-binary.tar.gz is not the published file .*./data"):
            fetch_cifar(CIFAR_10, web.url)
    assert not list((tmp_path / "cache" / "cifar-10").glob("cifar*"))


def test_what_is_damaged_is_refused_with_a_reason(tmp_path: Path) -> None:
    root = make_cifar(tmp_path, 10)
    batch = root / "data_batch_3.bin"
    whole = batch.read_bytes()
    names = (root / "batches.meta.txt").read_text()
    for file, content, text in (
        (batch, whole[:-1], "not a multiple of 3073"),
        (batch, b"", "has 0 bytes"),
        (batch, whole[:-3073], "a class, published are equally many"),
        (batch, b"\x0a" + whole[1:], "has the label 10 of 10"),
        (batch, None, "has no data_batch_3.bin"),
        (root / "batches.meta.txt", b"cat\ndog\n", "names 2 classes, expected 10"),
        (root / "batches.meta.txt", b"\xff\xfe\n", "is damaged"),
        (root / "test_batch.bin", None, "has no test_batch.bin"),
    ):
        old = file.read_bytes()
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(DataError, match=text):
            load_dataset(str(root))
        with pytest.raises(DataError, match=text):
            load_dataset(str(tar_of(root)))
        file.write_bytes(old)
    assert (root / "batches.meta.txt").read_text() == names
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_an_archive_that_is_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    archive = tar_of(make_cifar(tmp_path, 10))
    data = archive.read_bytes()
    archive.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match=r"cifar-10-binary.tar.gz is damaged or incomplete"):
        load_dataset(str(archive))


def test_a_member_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    archive = tar_of(make_cifar(tmp_path, 10))
    archive.write_bytes(gzip.compress(gzip.decompress(archive.read_bytes())[:200_000], 1))  # whole gzip, half a tar
    with pytest.raises(DataError, match=r"cifar-10-binary.tar.gz is damaged or incomplete"):
        load_dataset(str(archive))


def test_the_pickled_version_is_refused(tmp_path: Path) -> None:
    for name in ("data_batch_1", "test_batch"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="is the Python version, a pickle; qdeploy reads the binary one"):
        load_dataset(str(tmp_path))
