"""A watched folder: every image once, whatever happens to the folder, the file of the answers and the server."""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Any

import pytest

from qdeploy.core.errors import InputError
from qdeploy.serve import ServeConfig
from qdeploy.serve.logs import Log
from qdeploy.serve.refusal import RefusedError
from qdeploy.serve.service import Service
from qdeploy.serve.sources.answers import HEADER, AnswerFile, Stamp, record, with_error, with_stamp
from qdeploy.serve.sources.config import SourcesConfig
from qdeploy.serve.sources.run import Sources
from qdeploy.serve.sources.watch import Folder, Remembered
from tests.serve.serving import EXAMPLES, Serving, refused, until

LABELS = {"bag": "Bag", "trouser": "Trouser", "sandal": "Sandal", "coat": "Coat"}


def put(folder: Path, *names: str, example: str = "bag") -> None:
    """Copy an example into a folder under other names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(EXAMPLES / f"{example}.png", folder / name)


def names(answers: list[dict[str, str]]) -> list[str]:
    return sorted(Path(answer["image"]).name for answer in answers)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def test_every_image_has_one_answer_whenever_it_comes_and_however(folder: Path, tmp_path: Path) -> None:
    put(folder, "first/bag.png")
    with Serving(tmp_path, "--watch", "in") as serving:
        until(lambda: serving.answers())
        put(tmp_path, "outside.png", example="trouser")
        os.rename(tmp_path / "outside.png", folder / "moved-in.png")
        whole = (EXAMPLES / "coat.png").read_bytes()
        with (folder / "slow.png").open("wb", buffering=0) as stream:  # as a slow upload writes it
            for i in range(0, len(whole), 1 + len(whole) // 8):
                stream.write(whole[i : i + 1 + len(whole) // 8])
                time.sleep(0.1)
        (folder / "text.jpg").write_text("no image")
        put(folder, ".hidden.png", ".folder/bag.png", "__MACOSX/bag.png", "unfinished.png.part", "no suffix")
        (folder / "notes.txt").write_text("no image")
        (folder / "loop.png").symlink_to("loop.png")
        os.mkfifo(folder / "pipe.png")
        put(folder, "gone.png")
        os.remove(folder / "gone.png")
        until(lambda: len(serving.answers()) >= 5)
        os.rename(folder / "first" / "bag.png", folder / "renamed.png")
        put(folder, "last.png")
        until(lambda: "last.png" in names(serving.answers()))
        answers = {Path(a["image"]).name: a for a in serving.answers()}
        assert names(serving.answers()) == ["bag.png", "last.png", "moved-in.png", "no suffix", "slow.png", "text.jpg"]
        assert {n: a.get("label") for n, a in answers.items()} == {
            **{"bag.png": "Bag", "last.png": "Bag", "moved-in.png": "Trouser", "slow.png": "Coat", "text.jpg": None},
            "no suffix": "Bag",
        }
        assert answers["text.jpg"]["reason"] == "unsupported-format"
        bag = answers["bag.png"]
        assert bag["image"] == str(folder / "first" / "bag.png")
        assert bag["model"] == "nano-fashion-mnist-int8"
        assert bag["version"] == "1"
        assert len(bag["predictions"]) == 3
        assert bag["predictions"][0]["label"] == "Bag"
        assert bag["probability"] == bag["predictions"][0]["probability"] > 0.9
        assert set(bag["latency_ms"]) == {"queue", "decode", "infer", "post", "total"}
        assert serving.report()["since_start"]["statuses"] == {"200": 5, "415": 1}


@pytest.mark.slow
def test_a_damaged_image_is_called_so_only_when_nobody_goes_on_writing(folder: Path, tmp_path: Path) -> None:
    """A writer that pauses for a second gets an answer to the whole image."""
    whole = (EXAMPLES / "sandal.png").read_bytes()
    with Serving(tmp_path, "--watch", "in") as serving:
        (folder / "torn.png").write_bytes(whole[:200])
        (folder / "paused.png").write_bytes(whole[:200])
        time.sleep(1)
        (folder / "paused.png").write_bytes(whole)
        until(lambda: len(serving.answers()) == 2)
        paused, torn = serving.answers()
        assert (paused["image"], paused["label"]) == (str(folder / "paused.png"), "Sandal")
        assert (torn["image"], torn["reason"]) == (str(folder / "torn.png"), "truncated")


@pytest.mark.parametrize("file", ["answers.jsonl", pytest.param("answers.csv", marks=pytest.mark.slow)])
def test_after_sigkill_what_was_answered_is_not_classified_again(folder: Path, tmp_path: Path, file: str) -> None:
    put(folder, *(f"{i:04}.png" for i in range(400)))
    path = tmp_path / file
    serving = Serving(tmp_path, "--watch", "in", "--answers", file)
    until(lambda: path.exists() and path.stat().st_size > 20_000)
    serving.kill()
    before = path.read_bytes()
    whole = before[: before.rindex(b"\n") + 1]
    assert whole.count(b"\n") < 400, "killed too late to prove anything"
    path.write_bytes(before + b'{"time": "2026-01-01T00:00:00.000+00:00", "source": "watch", "im'[:60])
    put(folder, "new.png")
    with Serving(tmp_path, "--watch", "in", "--answers", file) as serving:
        until(lambda: b"new.png" in path.read_bytes() and path.read_bytes().count(b".png") >= 401)
        time.sleep(0.6)  # what would be doubled would be by now
        assert len(serving.events("answers-repaired")) == 1
    after = path.read_bytes()
    assert after.startswith(whole)
    if file.endswith("csv"):
        rows = list(csv.DictReader(after.decode().splitlines()))
        assert {row["label"] for row in rows} == {"Bag"}
    else:
        rows = [json.loads(line) for line in after.splitlines()]
    assert names(rows) == [*(f"{i:04}.png" for i in range(400)), "new.png"]


def test_images_that_are_there_are_left_alone_where_it_is_wanted(folder: Path, tmp_path: Path) -> None:
    put(folder, "old.png")
    with Serving(tmp_path, "--watch", "in", "--watch-new-only", "--answers", "new.csv") as serving:
        put(folder, "new.png")
        until(lambda: (tmp_path / "new.csv").read_text().count("\n") == 2)
        put(folder, "old.png", example="trouser")  # another image of the same name is a new one
        until(lambda: (tmp_path / "new.csv").read_text().count("\n") == 3)
        assert serving.events("watching")[0]["left_alone"] == 1
    with (tmp_path / "new.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(Path(r["image"]).name, r["label"]) for r in rows] == [("new.png", "Bag"), ("old.png", "Trouser")]
    assert json.loads(rows[0]["predictions"])[0]["label"] == "Bag"


def test_a_full_disk_loses_nothing(folder: Path, tmp_path: Path) -> None:
    """The kernel refuses to let the process's files grow, in the middle of a line."""
    with Serving(tmp_path, "--watch", "in") as serving:
        put(folder, "before.png")
        until(lambda: serving.answers())
        full = (tmp_path / "answers.jsonl").stat().st_size + 100
        resource.prlimit(serving.process.pid, resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))
        put(folder, "a.png", "b.png")
        (entry,) = until(lambda: serving.events("answers-not-written"))
        assert entry["why"] in ("File too large", "No space left on device")
        assert (tmp_path / "answers.jsonl").stat().st_size == full - 100
        resource.prlimit(serving.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        until(lambda: len(serving.answers()) == 3)
        assert names(serving.answers()) == ["a.png", "b.png", "before.png"]
        assert len(serving.events("answers-written-again")) == 1


@pytest.mark.slow
def test_a_folder_that_goes_and_comes_again(folder: Path, tmp_path: Path) -> None:
    put(folder, "one.png")
    with Serving(tmp_path, "--watch", "in") as serving:
        until(lambda: serving.answers())
        os.rename(folder, tmp_path / "away")
        (entry,) = until(lambda: serving.events("folder-unreadable"))
        assert entry["why"].endswith("No such file or directory")
        os.rename(tmp_path / "away", folder)
        put(folder, "two.png")
        until(lambda: len(serving.answers()) == 2)
        assert len(serving.events("folder-readable")) == 1
        assert names(serving.answers()) == ["one.png", "two.png"]


@pytest.mark.slow
def test_answers_that_are_moved_away_begin_anew(folder: Path, tmp_path: Path) -> None:
    with Serving(tmp_path, "--watch", "in") as serving:
        put(folder, "one.png")
        until(lambda: serving.answers())
        os.rename(tmp_path / "answers.jsonl", tmp_path / "old.jsonl")
        put(folder, "two.png")
        until(lambda: serving.answers())
        assert names(serving.answers()) == ["two.png"]
        assert names(serving.answers("old.jsonl")) == ["one.png"]


@pytest.mark.slow
def test_a_full_queue_is_waited_for(folder: Path, tmp_path: Path) -> None:
    """One place, and four clients that want it all the time."""
    answers = tmp_path / "answers.jsonl"
    sources = SourcesConfig(watch=(folder,), answers=answers)
    put(folder, *(f"{i}.png" for i in range(20)))
    service = Service((), ServeConfig(queue=1, selftest=False, sources=sources), Log(quiet=True))
    service.start()
    running, enough = Sources(sources, Log(quiet=True)), Flag()
    crowd = [Thread(target=press, args=(service, enough), daemon=True) for _ in range(4)]
    try:
        for thread in crowd:
            thread.start()
        running.start(service)
        until(lambda: answers.read_text().count("\n") == 20)
    finally:
        enough.set()
        for thread in crowd:
            thread.join()
        running.stop()
        service.stop()
    assert [json.loads(line)["label"] for line in answers.read_text().splitlines()] == ["Bag"] * 20
    assert service.stats.since_start().statuses[503] > 0


def press(service: Service, enough: Flag) -> None:
    """Ask for one answer after the other."""
    data = (EXAMPLES / "bag.png").read_bytes()
    while not enough.is_set():
        try:
            service.classify(data)
        except RefusedError:
            time.sleep(0.005)


def test_a_file_written_over_in_its_place_is_a_new_image(folder: Path) -> None:
    watched, remembered = folder / "latest.jpg", Remembered()
    watched.write_bytes(b"first")
    places = Folder(str(folder), remembered)
    (first,) = until(places.look)
    remembered.add(first.stamp)
    for _ in range(5):
        time.sleep(0.02)
        assert places.look() == []
    watched.write_bytes(b"second")
    (second,) = until(places.look)
    assert second.stamp.size_bytes == 6


def test_files_that_are_there_are_never_forgotten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After far more answers than are remembered of files that are gone."""
    monkeypatch.setattr("qdeploy.serve.sources.watch.FORGOTTEN", 10)
    (folder / "here.jpg").touch()
    found = (folder / "here.jpg").stat()
    here = Stamp(str(folder / "here.jpg"), found.st_size, found.st_mtime_ns, found.st_ino)
    gone = [Stamp(str(folder / f"{i}.jpg"), 1, i, 10**9 + i) for i in range(1000)]
    remembered = Remembered()
    remembered.fill([here, *gone])
    places = Folder(str(folder), remembered)
    for stamp in gone:
        remembered.add(stamp)
    places.look()
    assert here in remembered
    assert gone[-1] in remembered
    assert gone[0] not in remembered


@pytest.mark.parametrize("end", [b'{"time": "2026', b"\0" * 100, b'{"time": "20\0\0\0', b"{"])
def test_a_torn_end_is_removed(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "answers.jsonl"
    answer = with_stamp(with_error(record("watch", "/a\n.png", "m", 1), "no", "damaged"), Stamp("/a\n.png", 1, 2, 3))
    whole = (json.dumps(answer) + "\n").encode()
    path.write_bytes(whole + end)
    events: list[str] = []
    file = AnswerFile(path, lambda event, **_: events.append(event))
    assert list(file.stamps()) == [Stamp("/a\n.png", 1, 2, 3)]
    file.add(answer)
    file.close()
    assert path.read_bytes() == whole + whole
    assert events == ["answers-repaired"]


def test_a_last_answer_without_a_newline_stays(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"time": "x", "source": "camera"}')
    AnswerFile(path, Log()).close()
    assert path.read_text() == '{"time": "x", "source": "camera"}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [("notes.jsonl", b'{"a": 1}\nmy notes'), ("table.csv", b"a,b\n1,2\n"), ("table.csv", HEADER[:9] + b"\n")],
)
def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="holds something else than answers"):
        AnswerFile(tmp_path / name, Log())
    assert (tmp_path / name).read_bytes() == content


def test_two_servers_do_not_add_to_one_file(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "answers.jsonl", Log())
    with pytest.raises(InputError, match="another process adds to"):
        AnswerFile(tmp_path / "answers.jsonl", Log())
    file.close()
    AnswerFile(tmp_path / "answers.jsonl", Log()).close()


def test_odd_names_are_known_again(tmp_path: Path) -> None:
    stamps = [Stamp(name, 1, 2, i) for i, name in enumerate(['a"b,c.png', "ü.png", "\udcff.png", "=1.png"])]
    for name in ("a.csv", "a.jsonl"):
        file = AnswerFile(tmp_path / name, Log())
        for stamp in [*stamps, Stamp("new\nline.png", 1, 2, 99)]:
            file.add(with_stamp(with_error(record("watch", stamp.path, "m", 1), "no", "damaged"), stamp))
        *found, last = file.stamps()
        assert found == stamps
        assert last.path.startswith("new")
        assert last.inode == 99
        file.close()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"watch": (Path("nowhere"),)}, "cannot watch nowhere: no such folder"),
        ({"watch": (Path("pyproject.toml"),)}, "cannot watch pyproject.toml: not a folder"),
        ({"watch": (Path("tests"), Path("tests/serve"))}, "tests/serve/ is in another folder of `watch`"),
        ({"watch": (Path("tests"),), "answers": Path("a.txt")}, "`answers` must end in .jsonl or .csv, found a.txt"),
        ({"answers": Path("a.csv")}, "`answers` is for the answers of `watch` and `camera`; give one"),
        ({"mqtt": "mqtt://host"}, "`mqtt` is for the answers of `watch` and `camera`; give one"),
        ({"camera": ("lavfi:a", "lavfi:b")}, "two cameras of `camera` have one name"),
        ({"every_s": 0.001}, "`every` must be between 0.02 and 3600, found 0.001"),
        ({"top": 0}, "`top` must be between 1 and"),
    ],
)
def test_what_cannot_be_is_said(given: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(InputError) as caught:
        SourcesConfig(**given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--source-model", "nano"], "there is no model 'nano'"),
        (["--answers", "in/no/a.csv"], "cannot write the answers"),
    ],
)
def test_what_cannot_be_is_one_line(folder: Path, tmp_path: Path, options: list[str], said: str) -> None:
    (folder / "no").touch()
    with refused(tmp_path, "--watch", "in", *options) as line:
        assert said in line


@pytest.mark.slow
def test_ctrl_c_is_a_good_end(folder: Path, tmp_path: Path) -> None:
    with Serving(tmp_path, "--watch", "in") as serving:
        serving.process.send_signal(signal.SIGINT)
        assert serving.process.wait(30) == 0
