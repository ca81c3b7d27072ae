from __future__ import annotations

import csv
import errno
import io
import linecache
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from PIL import Image

import qdeploy
from qdeploy.cli.main import run
from qdeploy.core.errors import InputError
from qdeploy.runtime.answer_csv import AnswerCsv
from qdeploy.runtime.inputs import expand
from qdeploy.runtime.predict import LOOK_AHEAD, predict_files

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_folders_globs_and_files_expand_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "sub/c.PNG", "note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = list(expand([str(tmp_path), str(tmp_path / "*.png"), "-", str(tmp_path / "missing.png")]))
    names = [Path(f).name for f in found]
    assert names == ["a.jpg", "b.png", "c.PNG", "b.png", "-", "missing.png"]


def test_an_empty_folder_or_glob_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no image"):
        list(expand([str(tmp_path)]))
    with pytest.raises(InputError, match="no file matches"):
        list(expand([str(tmp_path / "*.png")]))


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (1, 4), (3, 2), (100, None), (None, None)])
def test_bad_images_are_answered_in_place_and_stop_nothing(
    int8_file: Path, tmp_path: Path, batch_size: int | None, workers: int | None
) -> None:
    for i, name in enumerate(sorted(p.name for p in EXAMPLES.glob("*.png"))[:5]):
        shutil.copy(EXAMPLES / name, tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"broken")
    classifier = qdeploy.load(int8_file)
    answers = list(predict_files(classifier, expand([str(tmp_path), str(tmp_path / "none.png")]), batch_size, workers))
    assert [Path(a.image).name for a in answers] == ["0.png", "1.png", "2.png", "3.png", "4.png", "none.png"]
    assert [a.error is None for a in answers] == [True, True, False, True, True, False]
    for answer in answers:
        if answer.prediction:
            assert answer.prediction.label == classifier(answer.image).label
            assert set(answer.latency_ms) == {"decode", "preprocess", "infer"}
        else:
            assert set(answer.to_dict(3)) == {"image", "error", "reason"}


def test_folders_are_walked_by_name_at_every_level(tmp_path: Path) -> None:
    names = ["a.png", "b/c/x.png", "b/d.png", "b/z/y.png", "c.png", "d/e.JPEG"]
    for name in reversed(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "b" / "gone.png").symlink_to(tmp_path / "nowhere")
    left_out: Counter[str] = Counter()
    names.insert(3, "b/gone.png")  # it is answered: there is no such image
    assert list(expand([str(tmp_path)], left_out)) == [str(tmp_path / name) for name in names]
    assert left_out == {f"{tmp_path / 'b' / 'loop'} (a link to a folder)": 1}


def test_images_of_a_folder_are_told_by_content_and_the_others_counted(tmp_path: Path) -> None:
    for name in ("a.jfif", "b.jpe", "c", "d.dat"):
        shutil.copy(EXAMPLES / "bag.png", tmp_path / name)
    for name in ("e.txt", "f.TXT", "g.ogg", "h", ".hidden", "Thumbs.db"):
        (tmp_path / name).write_text("no image")
    for folder in (".git", "__MACOSX"):
        (tmp_path / folder).mkdir()
        shutil.copy(EXAMPLES / "bag.png", tmp_path / folder / "x.png")
    left_out: Counter[str] = Counter()
    assert [Path(p).name for p in expand([str(tmp_path)], left_out)] == ["a.jfif", "b.jpe", "c", "d.dat"]
    assert left_out == {".txt": 2, ".ogg": 1, "": 1}
    for path in tmp_path.glob("[a-d]*"):
        path.unlink()
    with pytest.raises(InputError, match=r"holds no image, found \.txt 2, no suffix 1, \.ogg 1$"):
        expand([str(tmp_path)])


def test_pages_are_counted_in_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Image.open(EXAMPLES / "bag.png") as bag:
        bag.save(tmp_path / "a.tif", save_all=True, append_images=[Image.new("L", (9, 9))] * 2)
        bag.save(tmp_path / "b.tif")
    several, one = predict_files(qdeploy.load(), expand([str(tmp_path)]))
    assert several.prediction
    assert one.prediction
    assert list(several.prediction.probabilities) == list(one.prediction.probabilities)
    assert several.to_dict(1)["frames"] == 3
    assert "frames" not in one.to_dict(1)
    assert run(["predict", str(tmp_path), "--model", "qdeploy/shipped"]) == 0
    assert "a.tif: the first of 3 frames or pages was taken" in capsys.readouterr().err


def test_a_folder_that_cannot_be_listed_is_an_answer(
    int8_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(EXAMPLES / "bag.png", tmp_path / name)
    real = os.scandir

    def scandir(path: str) -> Any:
        if Path(path).name == "a":  # root, who runs tests in containers, may list everything
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    bad, good = predict_files(qdeploy.load(int8_file), expand([str(tmp_path)]))
    assert (bad.image, bad.error) == (str(tmp_path / "a"), "cannot be read: Permission denied")
    assert good.error is None


def test_images_are_asked_for_as_they_are_needed(int8_file: Path) -> None:
    asked = 0

    def many() -> Iterator[str]:
        nonlocal asked
        for _ in range(1000):
            asked += 1
            yield str(EXAMPLES / "bag.png")

    answers = predict_files(qdeploy.load(int8_file), many(), batch_size=2, workers=3)
    for _ in range(20):
        assert next(answers).error is None
    answers.close()  # type: ignore[attr-defined]
    assert asked <= 20 + 2 * (3 * LOOK_AHEAD + 2)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"workers": 0}, {"workers": 5000}])
def test_sizes_out_of_range_are_refused_at_once(int8_file: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"`{next(iter(wrong))}` must be between 1 and 1024"):
        predict_files(qdeploy.load(int8_file), [], **wrong)


def test_csv_rows_are_whole_at_any_time_and_the_file_is_named_at_the_end(int8_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    path.write_text("an earlier file")
    names = [str(EXAMPLES / "bag.png"), str(tmp_path / 'no "such",\nfile\udcff.png')]
    answers = list(predict_files(qdeploy.load(int8_file), names))
    with pytest.raises(InputError, match=r"answers.csv exists; give another name, or `force`"):
        AnswerCsv(path)
    stopped = AnswerCsv(path, replace=True)
    stopped.write(answers[0])
    stopped.__exit__(KeyboardInterrupt, None, None)
    assert path.read_text() == "an earlier file"
    assert len(rows(tmp_path / "answers.csv.part")) == 1
    with AnswerCsv(path, replace=True) as file:
        for answer in answers:
            file.write(answer)
    good, bad = rows(path)
    assert [good["image"], bad["image"]] == names
    assert (good["label"], good["error"]) == ("Bag", "")
    assert 0.0 < float(good["probability"]) <= 1.0
    assert (bad["label"], bad["error"], bad["reason"]) == ("", "no such file", "not-found")
    assert not file.part.exists()
    with pytest.raises(InputError, match="is a folder"):
        AnswerCsv(tmp_path)


def test_an_interrupt_between_a_row_and_its_count_counts_the_row(int8_file: Path, tmp_path: Path) -> None:
    """Python raises KeyboardInterrupt between any two lines; here, before the line that counts."""

    def interrupt(frame: FrameType, event: str, _: object) -> Any:
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and line.strip() == "self.rows += 1":
            raise KeyboardInterrupt
        return interrupt if "answer_csv" in frame.f_code.co_filename else None

    (answer,) = predict_files(qdeploy.load(int8_file), [str(EXAMPLES / "bag.png")])
    file = AnswerCsv(tmp_path / "answers.csv")

    def write() -> None:
        earlier = sys.gettrace()
        sys.settrace(interrupt)
        try:
            file.write(answer)
        finally:
            sys.settrace(earlier)

    with pytest.raises(KeyboardInterrupt), file:
        write()
    assert file.rows == len(rows(file.part)) == 1


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        return list(csv.DictReader(stream))


def test_standard_input(int8_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO((EXAMPLES / "bag.png").read_bytes()))
    monkeypatch.setattr(sys, "stdin", stream)
    (answer,) = predict_files(qdeploy.load(int8_file), ["-"])
    assert answer.prediction is not None
    assert answer.prediction.label == qdeploy.load(int8_file)(EXAMPLES / "bag.png").label
