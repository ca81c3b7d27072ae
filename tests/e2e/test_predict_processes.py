"""``qdeploy predict`` on many images as real processes: memory, terminals, Ctrl-C, odd names, what is loaded."""

from __future__ import annotations

import csv
import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
QDEPLOY = [sys.executable, "-m", "qdeploy", "predict"]
CODE = "import sys; from qdeploy.cli.main import run; code = run(['predict', *sys.argv[1:]]); "
PEAK = CODE + "from qdeploy.core.machine import peak_memory_bytes; print(peak_memory_bytes(), code)"


def folder_of(path: Path, count: int, every: int = 1) -> Path:
    """A folder of links to one image; of ``every`` links all but one lead to a file that is no image."""
    path.mkdir()
    (path.parent / "broken").write_bytes(b"x")
    for i in range(count):
        os.symlink(path.parent / "broken" if i % every else EXAMPLES / "bag.png", path / f"image-{i:06}.png")
    return path


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    peaks = []
    for count in (1_000, 20_000):
        folder = folder_of(tmp_path / str(count), count, every=20)
        command = [sys.executable, "-c", PEAK, str(folder), "--force", "--csv", str(tmp_path / "answers.csv")]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        peak, code = map(int, done.stdout.split())
        assert code == 2
        assert len((tmp_path / "answers.csv").read_text().splitlines()) == count + 1
        peaks.append(peak)
    assert peaks[1] - peaks[0] <= 5e6


def test_ctrl_c_leaves_the_answers_so_far(tmp_path: Path) -> None:
    folder, file = folder_of(tmp_path / "images", 20_000), tmp_path / "answers.csv"
    process = subprocess.Popen([*QDEPLOY, str(folder), "--csv", str(file)], stderr=subprocess.PIPE, text=True)
    part = tmp_path / "answers.csv.part"
    while not part.exists() or part.stat().st_size < 1000:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    with part.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    said = [line for line in err.splitlines() if line]
    assert said[-2:] == [f"stopped: {part} holds the first {len(rows)} answers", "qdeploy: interrupted"]
    assert [Path(r["image"]).name for r in rows] == [f"image-{i:06}.png" for i in range(len(rows))]
    assert all(r["label"] == "Bag" for r in rows)
    assert not file.exists()


def test_the_bar_is_on_the_terminal_and_the_answers_are_in_the_pipe(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images", 300, every=100)
    ours, theirs = pty.openpty()
    with (tmp_path / "answers").open("w") as stdout:
        process = subprocess.Popen([*QDEPLOY, str(folder), "--json"], stdout=stdout, stderr=theirs)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the terminal's other end is closed
        while block := os.read(ours, 65536):
            shown += block
    os.close(ours)
    assert process.wait(timeout=60) == 2
    answers = [json.loads(line) for line in (tmp_path / "answers").read_text().splitlines()]
    assert [Path(a["image"]).name for a in answers] == [f"image-{i:06}.png" for i in range(300)]
    assert b"of 300 images" in shown
    assert b"297 of them not readable" in shown


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.png"
    os.symlink(os.fsencode(EXAMPLES / "bag.png"), name)
    words = [os.fsencode(w) for w in (*QDEPLOY, str(tmp_path))]
    assert subprocess.run(words, capture_output=True, check=True).stdout.startswith(name + b": Bag")
    (answer,) = subprocess.run([*words, b"--json"], capture_output=True, check=True).stdout.splitlines()
    assert os.fsencode(json.loads(answer)["image"]) == name


def test_one_image_loads_nothing_that_only_many_need() -> None:
    wanted = {"concurrent.futures.thread", "qdeploy.cli.volume"}
    code = f"{CODE} print(sorted(set(sys.modules) & {wanted | {'rich', 'qdeploy.runtime.answer_csv'}}))"
    for images, loaded in ([str(EXAMPLES / "bag.png")], set()), ([str(EXAMPLES)] * 3, wanted):
        done = subprocess.run([sys.executable, "-c", code, *images], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == str(sorted(loaded))
