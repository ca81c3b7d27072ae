from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import pytest

import qdeploy
from qdeploy.core.errors import InputError
from qdeploy.runtime.predict import expand, predict_files

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


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_bad_images_are_answered_in_place_and_stop_nothing(int8_file: Path, tmp_path: Path, batch_size: int) -> None:
    for i, name in enumerate(sorted(p.name for p in EXAMPLES.glob("*.png"))[:5]):
        shutil.copy(EXAMPLES / name, tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"broken")
    classifier = qdeploy.load(int8_file)
    answers = list(predict_files(classifier, expand([str(tmp_path), str(tmp_path / "none.png")]), batch_size))
    assert [Path(a.image).name for a in answers] == ["0.png", "1.png", "2.png", "3.png", "4.png", "none.png"]
    assert [a.error is None for a in answers] == [True, True, False, True, True, False]
    for answer in answers:
        if answer.prediction:
            assert answer.prediction.label == classifier(answer.image).label
            assert set(answer.latency_ms) == {"decode", "preprocess", "infer"}
        else:
            assert set(answer.to_dict(3)) == {"image", "error", "reason"}


def test_standard_input(int8_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO((EXAMPLES / "bag.png").read_bytes()))
    monkeypatch.setattr(sys, "stdin", stream)
    (answer,) = predict_files(qdeploy.load(int8_file), ["-"])
    assert answer.prediction is not None
    assert answer.prediction.label == qdeploy.load(int8_file)(EXAMPLES / "bag.png").label
