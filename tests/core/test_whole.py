"""Files and folders that appear whole or not at all, whatever their name stands for and whoever else writes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qdeploy.core import whole
from qdeploy.core.errors import InputError
from qdeploy.core.files import write_bytes, write_json
from qdeploy.core.whole import PART, folder_made_whole, open_alone

WRITER = """
import sys, time
from pathlib import Path
from qdeploy.core import whole
with getattr(whole, sys.argv[1])(Path(sys.argv[2])) as made:
    made.write(b"half") if sys.argv[1] == "file_made_whole" else (made / "half").touch()
    print("writing", flush=True)
    time.sleep(60)
"""


@contextmanager
def writer(function: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process in the middle of writing."""
    with subprocess.Popen([sys.executable, "-c", WRITER, function, str(path)], stdout=subprocess.PIPE, text=True) as p:
        assert p.stdout is not None
        assert p.stdout.readline() == "writing\n"
        yield p
        p.kill()


def age(folder: Path) -> None:
    """Let everything in a folder look an hour old."""
    for path in folder.iterdir():
        os.utime(path, (time.time() - 3600,) * 2)


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", bytearray()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.extend(pipe.read_bytes()))
    reader.start()
    write_bytes(pipe, b"answers")
    reader.join(10)
    assert got == b"answers"
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_a_device_is_written_to_and_stays_one() -> None:
    write_bytes(Path(os.devnull), b"nothing")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "answers.json"
    link.symlink_to("real/answers.json")
    for value in (1, 2):  # the target is made, then replaced
        write_json(link, value)
        assert (tmp_path / "real" / "answers.json").read_text() == f"{value}\n"
    assert link.is_symlink()
    assert [p.name for p in (tmp_path / "real").iterdir()] == ["answers.json"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_or_folder_has_what_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "file", b"")
        with folder_made_whole(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~mask


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    file.chmod(0o640)
    write_bytes(file, b"new")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert file.read_bytes() == b"new"


@pytest.mark.parametrize("function", ["file_made_whole", "folder_made_whole"])
def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path, function: str) -> None:
    with writer(function, tmp_path / "out") as process:
        process.send_signal(signal.SIGKILL)
    (left,) = tmp_path.iterdir()
    assert PART.fullmatch(left.name)
    (tmp_path / ".out-2.0badcafe.part").touch()  # of another file: not ours to remove
    age(tmp_path)
    with getattr(whole, function)(tmp_path / "out"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out-2.0badcafe.part", "out"]


def test_what_another_process_is_writing_is_not_removed(tmp_path: Path) -> None:
    with writer("file_made_whole", tmp_path / "out"):
        age(tmp_path)
        write_bytes(tmp_path / "out", b"mine")
        assert len(list(tmp_path.iterdir())) == 2


def test_who_comes_second_to_a_folder_is_told(tmp_path: Path) -> None:
    with (
        writer("folder_made_whole", tmp_path / "out"),
        pytest.raises(InputError, match=r"another process is writing .*/out; wait for it, or give another `out`"),
        folder_made_whole(tmp_path / "out"),
    ):
        pass
    with folder_made_whole(tmp_path / "out"):  # the first was killed
        pass


def test_a_folder_is_there_at_every_moment_of_its_replacement(tmp_path: Path) -> None:
    target, missing = tmp_path / "export", []
    with folder_made_whole(target) as work:
        (work / "0").touch()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            if not target.is_dir():
                missing.append(time.monotonic())

    looker = threading.Thread(target=look)
    looker.start()
    for i in range(100):
        with folder_made_whole(target) as work:
            (work / str(i)).touch()
    done.set()
    looker.join()
    assert [p.name for p in target.iterdir()] == ["99"]
    assert not missing


def test_without_an_exchange_in_one_step_the_folder_is_replaced_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "_exchanged", lambda *_: False)
    for name in ("first", "second"):
        with folder_made_whole(tmp_path / "out") as work:
            (work / name).touch()
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "second"]


def test_a_file_is_open_alone_once(tmp_path: Path) -> None:
    first = open_alone(tmp_path / "rows")
    assert first is not None
    assert open_alone(tmp_path / "rows") is None
    os.rename(tmp_path / "rows", tmp_path / "done")
    again = open_alone(tmp_path / "rows")  # the name is free, though the file is still open
    assert again is not None
    os.close(first)
    os.close(again)
