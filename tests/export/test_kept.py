from __future__ import annotations

import os
from pathlib import Path

import pytest

from qdeploy.export.kept import NEWEST, keep, key_of, read_kept


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path))
    return tmp_path


def test_what_was_kept_is_read_unless_it_is_damaged(cache: Path) -> None:
    assert read_kept("graphs", "a") is None
    keep("graphs", "a", b"result")
    assert read_kept("graphs", "a") == b"result"
    assert read_kept("ranges", "a") is None
    file = cache / "graphs" / "a"
    file.write_bytes(file.read_bytes().replace(b"u", b"v"))
    assert read_kept("graphs", "a") is None


def test_the_newest_stay(cache: Path) -> None:
    for i in range(NEWEST + 3):
        keep("graphs", str(i), b"")
        os.utime(cache / "graphs" / str(i), (i, i))
    assert {p.name for p in (cache / "graphs").iterdir()} == {str(i) for i in range(3, NEWEST + 3)}


def test_a_cache_that_cannot_be_written_is_no_failure(cache: Path) -> None:
    (cache / "graphs").write_bytes(b"a file where the folder would be")
    keep("graphs", "a", b"result")
    assert read_kept("graphs", "a") is None


def test_a_key_tells_apart_where_a_part_ends() -> None:
    assert key_of(["ab", b"c"]) == key_of([b"ab", "c"]) != key_of(["a", "bc"])
