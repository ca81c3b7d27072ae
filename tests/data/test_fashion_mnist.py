from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest

from qdeploy.core.errors import DataError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data import fashion_mnist
from qdeploy.data.catalog import find_place, load_dataset
from qdeploy.data.fashion_mnist import NAME, fashion_mnist_source, fetch_fashion_mnist, local_folder, read_idx
from qdeploy.data.reading import read_source
from tests.data.layouts import make_fashion_mnist, write_idx
from tests.data.web import serving


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The four files in a folder that the lookup does not know, on a machine without the set."""
    root = tmp_path / "published"
    monkeypatch.setattr(fashion_mnist, "SHA256", make_fashion_mnist(root))
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "none")
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return root


def test_the_published_layout_is_read(published: Path) -> None:
    dataset = read_source(fashion_mnist_source(published), Preprocessing(), seed=0)
    assert {k: len(v) for k, v in dataset.splits.items()} == {"train": 580, "val": 20, "test": 100}
    assert dataset.classes[9] == "Ankle boot"
    expected = read_idx(published / "t10k-images-idx3-ubyte.gz")[3]
    assert np.array_equal(dataset.splits["test"].pixels[3], Preprocessing()(expected))
    assert load_dataset(str(published)).sha256 == dataset.sha256  # recognised by its files, and through the cache


@pytest.mark.parametrize(
    "damage",
    [b"", b"junk", gzip.compress(b"\x00\x00\x09\x01"), gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x09ab")],
    ids=["empty", "junk", "another format", "cut off"],
)
def test_a_damaged_file_is_named(published: Path, damage: bytes) -> None:
    (published / "t10k-images-idx3-ubyte.gz").write_bytes(damage)
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte.gz"):
        fashion_mnist_source(published)


@pytest.mark.parametrize("place", ["data/fashion-mnist", "fashion-mnist", "cache/fashion-mnist", "none"])
def test_it_is_found_in_every_usual_place(published: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    published.rename(tmp_path / place)
    assert find_place(NAME).path == tmp_path / place


def test_it_is_fetched_once_and_checked(published: Path, tmp_path: Path) -> None:
    with serving(published) as web:
        folder = fetch_fashion_mnist(web.url)
    assert local_folder() == folder == tmp_path / "cache" / NAME
    assert len(fashion_mnist_source(folder).records["train"]) == 600
    assert fetch_fashion_mnist("http://127.0.0.1:9/") == folder


def test_a_wrong_file_is_refused_and_not_kept(published: Path, tmp_path: Path) -> None:
    write_idx(published / "train-labels-idx1-ubyte.gz", np.zeros(600, np.uint8))
    with serving(published) as web, pytest.raises(DataError, match="checksum mismatch"):
        fetch_fashion_mnist(web.url)
    assert not list((tmp_path / "cache" / NAME).glob("train-labels*"))


def test_no_network_says_what_to_do(published: Path) -> None:
    with pytest.raises(DataError, match="put the four files into"):
        fetch_fashion_mnist("http://127.0.0.1:9/")


def test_the_real_files_have_the_published_sizes_if_they_are_here() -> None:
    folder = local_folder()
    if folder is None:
        pytest.skip("the full Fashion-MNIST is not on this machine")
    source = fashion_mnist_source(folder)
    assert (len(source.records["train"]), len(source.records["test"])) == (60_000, 10_000)
    for name, expected in fashion_mnist.SHA256.items():
        assert hashlib.sha256(gzip.decompress((folder / name).read_bytes())).hexdigest() == expected
