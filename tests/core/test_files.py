from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qdeploy.core.errors import InputError
from qdeploy.core.files import BusyError, dated_folder, locked, newest, read_json, write_bytes, write_json
from qdeploy.core.whole import folder_made_whole, require_writable


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"x": 1})

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(target, b"new")
    assert read_json(target) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_appears_only_when_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "export"

    def fail_half_way() -> None:
        with folder_made_whole(target) as work:
            (work / "half").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert list((tmp_path / "deep").iterdir()) == []
    for name in ("first", "second"):
        with folder_made_whole(target) as work:
            (work / name).touch()
    assert [p.name for p in target.iterdir()] == ["second"]
    assert [p.name for p in target.parent.iterdir()] == ["export"]


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file, not a folder"):
        require_writable(tmp_path / "file" / "below")


def test_newest_ignores_hidden_folders(tmp_path: Path) -> None:
    for i, name in enumerate(("a", "b", ".work")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.json").touch()
        os.utime(tmp_path / name / "x.json", (i, i))
    assert newest(tmp_path, "*/x.json") == tmp_path / "b" / "x.json"
    assert newest(tmp_path, "*/none") is None


def test_damaged_json_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_json(tmp_path / "x.json")


def test_a_dated_folder_is_never_one_that_exists(tmp_path: Path) -> None:
    made = []
    for _ in range(3):
        made.append(dated_folder(tmp_path, "run"))
        made[-1].mkdir()
    assert len(set(made)) == 3
    assert all(folder.name.startswith("run-") for folder in made)


HOLD = """
import sys, time
from pathlib import Path
from qdeploy.core.files import locked
with locked(Path(sys.argv[1]), wait=False):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lock until it is killed."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_a_lock_of_another_process_is_told_at_once_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with holder(path) as process:
        begin = time.monotonic()
        with pytest.raises(BusyError, match=r"another process holds .*\.lock$"), locked(path, wait=False):
            pass
        assert time.monotonic() - begin < 1
        process.kill()
    assert path.exists()
    with locked(path, wait=False):  # the file that the killed process has left keeps nobody out
        pass


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with holder(path) as process:
        begin = time.monotonic()
        threading.Timer(0.3, process.kill).start()
        with locked(path, wait=True):
            assert time.monotonic() - begin >= 0.3
