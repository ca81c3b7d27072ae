from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qdeploy.core.errors import DataError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data import published
from qdeploy.data.dataset import read_source
from qdeploy.data.published import fashion_mnist_source, read_idx


def write_idx(path: Path, values: NDArray[np.uint8]) -> bytes:
    header = b"\x00\x00\x08" + bytes([values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()))
    return header + values.tobytes()


@pytest.fixture
def small_set(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """The four files in the published layout with 600 + 100 random images; also their checksums."""
    root = tmp_path / "published"
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
    return root, sums


@pytest.fixture
def server(small_set: tuple[Path, dict[str, str]]) -> Iterator[str]:
    handler = partial(SimpleHTTPRequestHandler, directory=str(small_set[0]))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()


def test_the_published_layout_is_read(small_set: tuple[Path, dict[str, str]]) -> None:
    source = fashion_mnist_source(small_set[0])
    dataset = read_source(source, Preprocessing(), seed=0)
    assert {k: len(v) for k, v in dataset.splits.items()} == {"train": 580, "val": 20, "test": 100}
    assert dataset.classes[9] == "Ankle boot"
    expected = read_idx(small_set[0] / "t10k-images-idx3-ubyte.gz")[3]
    assert np.array_equal(dataset.splits["test"].pixels[3], Preprocessing()(expected))


@pytest.mark.parametrize(
    "damage", [b"", b"junk", gzip.compress(b"\x00\x00\x09\x01"), gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x09ab")]
)
def test_a_damaged_file_is_named(small_set: tuple[Path, dict[str, str]], damage: bytes) -> None:
    (small_set[0] / "t10k-images-idx3-ubyte.gz").write_bytes(damage)
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte.gz"):
        fashion_mnist_source(small_set[0])


@pytest.fixture
def nothing_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_set: tuple[Path, dict[str, str]]) -> Path:
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(published, "_local_folder", lambda: None)
    monkeypatch.setattr(published, "FASHION_SHA256", small_set[1])
    return tmp_path / "cache" / "fashion-mnist"


def test_it_is_fetched_once_and_checked(server: str, nothing_local: Path) -> None:
    assert len(fashion_mnist_source(url=server).records["train"]) == 600
    assert len(list(nothing_local.iterdir())) == 4
    assert len(fashion_mnist_source(url="http://127.0.0.1:9/").records["test"]) == 100  # from the cache


def test_a_wrong_file_is_refused_and_not_kept(
    server: str, nothing_local: Path, small_set: tuple[Path, dict[str, str]]
) -> None:
    write_idx(small_set[0] / "train-labels-idx1-ubyte.gz", np.zeros(600, np.uint8))
    with pytest.raises(DataError, match="checksum mismatch"):
        fashion_mnist_source(url=server)
    assert not (nothing_local / "train-labels-idx1-ubyte.gz").exists()


def test_no_network_says_what_to_do(nothing_local: Path) -> None:
    with pytest.raises(DataError, match="put the four files into"):
        fashion_mnist_source(url="http://127.0.0.1:9/")


def test_the_real_files_have_the_published_sizes_if_they_are_here() -> None:
    folder = published._local_folder()
    if folder is None:
        pytest.skip("the full Fashion-MNIST is not on this machine")
    source = fashion_mnist_source(folder)
    assert (len(source.records["train"]), len(source.records["test"])) == (60_000, 10_000)
    for name, expected in published.FASHION_SHA256.items():
        assert hashlib.sha256(gzip.decompress((folder / name).read_bytes())).hexdigest() == expected
