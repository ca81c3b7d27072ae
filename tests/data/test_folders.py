from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qdeploy.core.errors import DataError
from qdeploy.data.catalog import load_dataset
from tests.conftest import MakeImages


def test_a_plain_folder_is_split_by_class_and_always_alike(image_folder: MakeImages) -> None:
    root = image_folder(("a", "b", "c"), count=20)
    first, second = load_dataset(str(root)), load_dataset(str(root))
    assert first.classes == ("a", "b", "c")
    assert {k: len(v) for k, v in first.splits.items()} == {"train": 42, "val": 9, "test": 9}
    assert first.sha256 == second.sha256
    for split in first.splits.values():
        assert len(set(np.bincount(split.labels))) == 1
    hashes = [h for s in first.splits.values() for h in s.hashes]
    assert len(set(hashes)) == 60


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Train", "valid", "testing"), ("train", "test")])
def test_given_splits_are_kept_and_missing_ones_cut_from_train(
    image_folder: MakeImages, names: tuple[str, ...]
) -> None:
    for i, name in enumerate(names):
        image_folder(("x", "y"), count=10 + i, name=f"data/{name}", seed=i)
    root = Path(image_folder(("x",), 1, name="other")).parent / "data"
    splits = load_dataset(str(root)).splits
    assert len(splits["test"]) == 2 * (10 + names.index(names[-1]))
    assert len(splits["val"]) == (22 if len(names) == 3 else 4)
    assert len(splits["train"]) == (20 if len(names) == 3 else 16)


def test_every_kind_of_image_is_read(image_folder: MakeImages) -> None:
    root = image_folder(count=3)
    rgba = Image.new("RGBA", (50, 40), (1, 2, 3, 128))
    rgba.save(root / "cat" / "alpha.png")
    Image.new("P", (10, 10)).save(root / "cat" / "palette.png")
    Image.new("L", (300, 9), 7).save(root / "dog" / "grey.bmp")
    Image.new("RGB", (64, 64), (9, 9, 9)).save(root / "dog" / "photo.JPG", "JPEG")
    rgba.resize((20, 20)).save(root / "dog" / "w.webp", lossless=True)
    dataset = load_dataset(str(root))
    assert sum(len(s) for s in dataset.splits.values()) == 11
    assert [p for p in dataset.problems if "repeat" not in p] == []


def test_bad_files_are_listed_and_skipped(image_folder: MakeImages) -> None:
    root = image_folder()
    (root / "cat" / "notes.txt").write_text("hello")
    (root / "cat" / "broken.png").write_bytes((root / "cat" / "0.png").read_bytes()[:100])
    (root / "dog" / "fake.jpg").write_text("<html>")
    (root / "dog" / ".hidden.png").write_text("ignored")
    dataset = load_dataset(str(root))
    assert sum(len(s) for s in dataset.splits.values()) == 16
    assert sorted(Path(p.split(": ")[0]).name for p in dataset.problems) == ["broken.png", "fake.jpg", "notes.txt"]


def test_repeated_images_never_cross_splits(image_folder: MakeImages) -> None:
    for name in ("train", "test"):
        image_folder(count=10, name=f"d/{name}", seed=ord(name[1]))
    root = image_folder(count=1, name="x").parent / "d"
    shutil.copy(root / "test" / "cat" / "0.png", root / "train" / "cat" / "stolen.png")
    shutil.copy(root / "test" / "cat" / "1.png", root / "train" / "dog" / "mislabelled.png")
    dataset = load_dataset(str(root))
    parts = [set(s.hashes) for s in dataset.splits.values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40
    assert len(dataset.splits["test"]) == 20
    assert sorted(dataset.problems) == [
        "1 image(s) of train repeat an image of test under another label; left out",
        "1 image(s) of train repeat an image of test; left out",
    ]


def test_a_class_may_be_called_train(image_folder: MakeImages) -> None:
    root = image_folder(("bus", "train", "car"))
    assert load_dataset(str(root)).classes == ("bus", "car", "train")


def test_a_split_emptied_by_repeats_is_refused(image_folder: MakeImages) -> None:
    image_folder(name="d/train")
    root = image_folder(name="d/test").parent  # the same seed: the same images
    with pytest.raises(DataError, match="class 'cat' of d has no usable training image .1 problem"):
        load_dataset(str(root))


def test_a_class_missing_from_test_is_a_problem_and_an_empty_test_an_error(image_folder: MakeImages) -> None:
    image_folder(name="d/train")
    root = image_folder(("cat",), name="d/test", seed=1).parent
    assert load_dataset(str(root)).problems == ("test has no image of dog",)
    for file in (root / "test" / "cat").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="no usable image in test"):
        load_dataset(str(root))


def test_a_folder_cannot_shadow_the_embedded_data(
    image_folder: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_folder(name="fashion-mnist-mini")
    monkeypatch.chdir(tmp_path)
    assert len(load_dataset().classes) == 10
    assert len(load_dataset("./fashion-mnist-mini").classes) == 2


def test_what_cannot_be_used_is_refused_with_a_reason(image_folder: MakeImages, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    one = image_folder(("only",), name="one")
    few = image_folder(count=2, name="few")
    hollow = image_folder(name="hollow")
    for file in (hollow / "dog").iterdir():
        file.write_text("no image")
    extra = image_folder(name="extra/train")
    image_folder(("cat", "bird"), name="extra/test", seed=1)
    beside = image_folder(name="beside/train")
    (beside.parent / "notes").mkdir()
    twice = image_folder(name="twice/train")
    image_folder(name="twice/val", seed=1)
    image_folder(name="twice/valid", seed=2)
    for folder, text in (
        (tmp_path / "none" / "x", "does not exist"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "empty", "no sub-folders"),
        (one, "has 1 class"),
        (few, "too few images"),
        (hollow, "class 'dog' of hollow has no usable training image .8 problem"),
        (extra.parent, "class 'bird'"),
        (beside.parent, "a folder 'notes' beside train"),
        (twice.parent, "has both val/ and valid/"),
    ):
        with pytest.raises(DataError, match=text):
            load_dataset(str(folder))


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'fashion-mnist'"):
        load_dataset("fashion-mnits")
