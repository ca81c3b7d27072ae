"""Real processes whose standard streams are closed, or whose readers go away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.e2e.test_predict_processes import EXAMPLES

QDEPLOY = [sys.executable, "-m", "qdeploy"]
PREDICT = [*QDEPLOY, "predict", str(EXAMPLES / "bag.png")]


def broken_pipe() -> int:
    """Return the end to write to of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    return write


@pytest.mark.parametrize("words", [["--csv", "answers.csv"], ["--json"]])
def test_work_goes_on_when_nobody_reads_the_notes(tmp_path: Path, words: list[str]) -> None:
    pipe = broken_pipe()
    done = subprocess.run([*PREDICT, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=pipe, timeout=60)
    os.close(pipe)
    assert done.returncode == 0
    if words[0] == "--csv":
        assert len((tmp_path / "answers.csv").read_text().splitlines()) == 2
    else:
        assert json.loads(done.stdout)["predictions"][0]["label"] == "Bag"


def test_a_bad_input_is_one_when_nobody_reads_the_notes(tmp_path: Path) -> None:
    pipe = broken_pipe()
    done = subprocess.run([*QDEPLOY, "predict", "none.png"], cwd=tmp_path, stderr=pipe, timeout=60)
    os.close(pipe)
    assert done.returncode == 2


@pytest.mark.parametrize("words", [["predict", *[str(EXAMPLES)] * 300], ["bench", "--quick"], ["bench", "--help"]])
def test_who_has_read_enough_ends_the_work_without_an_error(words: list[str]) -> None:
    pipe = broken_pipe()
    done = subprocess.run([*QDEPLOY, *words], stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(pipe)
    assert done.returncode == 0
    assert "qdeploy: " not in done.stderr


def test_a_broken_pipe_that_is_not_the_output_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows")
    reader = threading.Thread(target=lambda: (tmp_path / "rows").open("rb").close())
    reader.start()
    words = [*QDEPLOY, "predict", *[str(EXAMPLES)] * 300, "--csv", str(tmp_path / "rows")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    reader.join()
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == "qdeploy: the system: Broken pipe"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "<&- 2>&-"])
def test_closed_streams_take_nothing_from_the_others(tmp_path: Path, closed: str) -> None:
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *PREDICT, "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    if ">&-" in closed.replace("2>&-", ""):
        assert done.stdout == ""
    else:
        assert json.loads(done.stdout)["predictions"][0]["label"] == "Bag"
    assert ("model: " in done.stderr) is ("2>&-" not in closed)


@pytest.mark.parametrize("kind", ["pipe", "device", "stdout"])
def test_answers_go_into_what_is_no_regular_file(tmp_path: Path, kind: str) -> None:
    target = {"pipe": str(tmp_path / "rows"), "device": os.devnull, "stdout": "/dev/stdout"}[kind]
    got = bytearray()
    reader = threading.Thread(target=lambda: got.extend((tmp_path / "rows").read_bytes()))
    if kind == "pipe":
        os.mkfifo(target)
        reader.start()
    done = subprocess.run([*PREDICT, "--csv", target], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    if kind == "pipe":
        reader.join(10)
    rows = bytes(got) if kind == "pipe" else done.stdout
    assert (b",Bag," in rows) is (kind != "device")
    if kind != "stdout":
        assert Path(target).exists()
        assert not Path(target).is_file()


def test_who_comes_second_to_a_file_of_answers_is_told(tmp_path: Path) -> None:
    words = [*QDEPLOY, "predict", "-", "--csv", "answers.csv"]
    with subprocess.Popen(words, cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as first:
        assert first.stdin is not None
        assert first.stderr is not None
        first.stdin.write(f"{EXAMPLES / 'bag.png'}\n".encode())
        first.stdin.flush()
        first.stderr.readline()
        while not (tmp_path / "answers.csv.part").exists():
            pass
        second = subprocess.run(
            [*PREDICT, "--csv", "answers.csv"], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        first.stdin.close()
        assert first.wait(60) == 0
    assert second.returncode == 2
    assert "another process writes the answers to answers.csv" in second.stderr
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 2
