from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qdeploy.core.errors import DataError
from qdeploy.core.files import locked
from qdeploy.data.download import Checksum, fetch
from tests.data.web import Web, serving

DATA = np.random.default_rng(0).bytes(3_000_000)
MD5 = Checksum(kind="md5", hex=hashlib.md5(DATA).hexdigest())


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as web:
        web.files["set.zip"] = DATA
        yield web


def get(web: Web, target: Path, checksum: Checksum = MD5) -> None:
    fetch(web.url + "set.zip", target, checksum, "put set.zip into ./data")


def break_off(web: Web, target: Path, after: int = 1_500_000) -> None:
    web.break_after = after
    with pytest.raises(DataError, match=r"broke off at 1500000 of 3000000 bytes.*resume after 1.4 MiB, or put set.zip"):
        get(web, target)
    web.break_after = None
    assert not target.exists()


def test_a_file_is_fetched_whole_checked_and_counted(web: Web, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "set.zip"
    seen: list[tuple[int, int]] = []
    fetch(web.url + "set.zip", target, MD5, "", lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == DATA
    assert seen[-1] == (len(DATA), len(DATA))
    assert not list(target.parent.glob("*.part"))
    get(web, target)
    assert web.asked == [None]  # not asked again


def test_an_interrupted_download_is_resumed_where_it_broke_off(web: Web, tmp_path: Path) -> None:
    target = tmp_path / "set.zip"
    break_off(web, target)
    get(web, target)
    assert web.asked == [None, "bytes=1500000-"]
    assert target.read_bytes() == DATA


def test_a_server_without_ranges_begins_anew(web: Web, tmp_path: Path) -> None:
    target = tmp_path / "set.zip"
    break_off(web, target)
    web.ranges = False
    get(web, target)
    assert target.read_bytes() == DATA


@pytest.mark.parametrize(("part", "requests"), [(DATA, 1), (DATA + b"more", 2)], ids=["complete", "too long"])
def test_a_part_that_needs_no_more_is_checked_and_an_odd_one_replaced(
    web: Web, tmp_path: Path, part: bytes, requests: int
) -> None:
    target = tmp_path / "set.zip"
    (tmp_path / "set.zip.part").write_bytes(part)
    get(web, target)
    assert target.read_bytes() == DATA
    assert len(web.asked) == requests


def test_a_wrong_checksum_leaves_nothing(web: Web, tmp_path: Path) -> None:
    (tmp_path / "set.zip.part").write_bytes(b"of another file")
    with pytest.raises(DataError, match=r"checksum mismatch: md5 .*; nothing was kept; run again, or put"):
        get(web, tmp_path / "set.zip")
    assert not list(tmp_path.glob("set*"))
    get(web, tmp_path / "set.zip")


def test_a_checksum_of_the_contents_ignores_the_compression(web: Web, tmp_path: Path) -> None:
    checksum = Checksum(kind="sha256", hex=hashlib.sha256(b"text").hexdigest(), uncompressed=True)
    for i, data in enumerate((gzip.compress(b"text", 1), gzip.compress(b"text", 9, mtime=7))):
        web.files["set.zip"] = data
        get(web, tmp_path / str(i), checksum)
    for junk in (b"junk", gzip.compress(b"text")[:-9], gzip.compress(b"text")[:12] + b"\xff" * 20):
        web.files["set.zip"] = junk
        with pytest.raises(DataError, match="not gzip"):
            get(web, tmp_path / "junk", checksum)


def test_no_server_and_no_file_say_what_to_do(web: Web, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"refused\); run again with a network, or put set.zip into ./data"):
        fetch("http://127.0.0.1:9/set.zip", tmp_path / "set.zip", MD5, "put set.zip into ./data")
    with pytest.raises(DataError, match="Not Found"):
        fetch(web.url + "other", tmp_path / "set.zip", MD5, "")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="could not be fetched"):
        get(web, tmp_path / "file" / "set.zip")


def test_two_processes_do_not_write_into_one_part(web: Web, tmp_path: Path) -> None:
    with (
        locked(tmp_path / ".set.zip.lock", wait=False),
        pytest.raises(DataError, match="another process is fetching set.zip"),
    ):
        get(web, tmp_path / "set.zip")
    get(web, tmp_path / "set.zip")
