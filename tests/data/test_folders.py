from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qdeploy.core.errors import DataError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.catalog import load_dataset
from qdeploy.data.folders import order_note
from qdeploy.data.labelled import labelled_images
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


def test_an_image_is_told_by_its_content_where_its_suffix_does_not_promise_one(image_folder: MakeImages) -> None:
    root = image_folder(count=4)
    noise = np.random.default_rng(3).integers(0, 256, (12, 9, 9, 3), dtype=np.uint8)
    for i, kind in enumerate(("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")):
        Image.fromarray(noise[i]).save(root / "cat" / f"picture {kind}", kind)
    Image.fromarray(noise[8]).save(root / "cat" / "a.dat", "PNG")
    for i, suffix in enumerate((".jfif", ".JPE")):
        Image.fromarray(noise[9 + i]).save(root / "cat" / f"x{suffix}", "JPEG")
    for name, text in (
        ("a", ""),
        ("b.bmp2", "BM is no picture"),
        ("c.txt", "P1 is a paragraph"),
        ("d", "RIFF....WAVE"),
    ):
        (root / "dog" / name).write_text(text)
    Image.fromarray(noise[11]).save(root / "dog" / "later.png.part", "PNG")
    dataset = load_dataset(str(root))
    assert sum(len(s) for s in dataset.splits.values()) == 8 + 11
    left_out = [Path(p.removesuffix(": no image, left out")).name for p in dataset.problems]
    assert sorted(left_out) == ["a", "b.bmp2", "c.txt", "d", "later.png.part"]


def test_files_of_several_pages_are_told_also_when_they_come_from_the_cache(image_folder: MakeImages) -> None:
    root = image_folder()
    pages = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 9, 3), dtype=np.uint8)) for i in range(4)]
    pages[0].save(root / "cat" / "scan: 1.tif", save_all=True, append_images=pages[1:])
    pages[1].save(root / "dog" / "film.gif", save_all=True, append_images=pages[2:])
    expected = {
        f"{root}/cat/scan: 1.tif: the first of 4 frames or pages was taken",
        f"{root}/dog/film.gif: the first of several frames or pages was taken",
    }
    assert set(load_dataset(str(root)).problems) == expected
    (root / "cat" / "note.txt").touch()
    again = load_dataset(str(root))
    assert set(again.problems) == {*expected, f"{root}/cat/note.txt: no image, left out"}
    assert sum(len(s) for s in again.splits.values()) == 18


def test_what_systems_leave_behind_is_no_class_and_no_image(image_folder: MakeImages) -> None:
    root = image_folder(count=4)
    for folder in (".git", "__MACOSX", "@eaDir"):
        for where in (root, root / "cat"):
            (where / folder).mkdir()
            (where / folder / "0.png").write_bytes((root / "cat" / "0.png").read_bytes())
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "._0.png"):
        (root / "cat" / name).write_bytes(b"x")
    dataset = load_dataset(str(root))
    assert (dataset.classes, dataset.problems) == (("cat", "dog"), ())


@pytest.mark.parametrize("name", ["caf\u00e9", "\u00c5land", "\uac00\ub098", "\u1e9b\u0323"])
def test_a_class_is_one_whatever_the_form_of_its_accents(name: str, image_folder: MakeImages) -> None:
    composed, apart = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    assert composed != apart
    for i, (train, test) in enumerate(((composed, apart), (apart, composed))):
        image_folder((train, "tea"), name=f"{i}/train")
        root = image_folder((test, "tea"), name=f"{i}/test", seed=1).parent
        dataset = load_dataset(str(root))
        assert set(dataset.classes) == {composed, "tea"}
        assert len(dataset.splits["test"]) == 16
        assert dataset.problems == ()


@pytest.mark.parametrize(("one", "other"), [("caf\u00e9", "cafe\u0301"), ("Cat", "cat"), ("stra\u00dfe", "STRASSE")])
def test_names_that_differ_only_in_case_or_form_are_refused(one: str, other: str, image_folder: MakeImages) -> None:
    root = image_folder((one, other), count=2)
    if len(list(root.iterdir())) == 1:
        pytest.skip("this file system takes the two for one")
    with pytest.raises(DataError, match="differ only in case or in their Unicode form") as caught:
        load_dataset(str(root))
    assert str(caught.value).isascii()


def test_images_beside_the_class_folders_are_told(image_folder: MakeImages) -> None:
    image_folder(name="d/train")
    root = image_folder(name="d/test", seed=1).parent
    strays = (root / "a.png", root / "train" / "no suffix", root / "test" / "b.jpg")
    for path in strays:
        shutil.copy(root / "train" / "cat" / "0.png", path)
    (root / "README.md").write_text("no image")
    dataset = load_dataset(str(root))
    assert dataset.problems == tuple(
        f"{path}: lies beside the class folders, left out" for path in (strays[0], strays[2], strays[1])
    )
    assert sum(len(s) for s in dataset.splits.values()) == 32


def test_labels_are_matched_with_class_folders_in_any_form(image_folder: MakeImages) -> None:
    root = image_folder(("caf\u00e9", "tea"))
    images = labelled_images(str(root), "all", Preprocessing(), ("tea", "cafe\u0301"))
    assert sorted({label for batch in images.batches(4) for label in batch.labels.tolist()}) == [0, 1]


def test_a_split_that_writes_a_class_in_another_case_is_told(image_folder: MakeImages) -> None:
    image_folder(("cat", "dog"), name="d/train")
    root = image_folder(("Cat", "dog"), name="d/test", seed=1).parent
    with pytest.raises(DataError, match="class 'Cat' that .* has not, which has 'cat': names differ in case"):
        load_dataset(str(root))


def test_numbers_stand_in_the_order_of_text_and_that_is_said(image_folder: MakeImages) -> None:
    classes = load_dataset(str(image_folder(tuple(map(str, range(12))), count=5))).classes
    assert classes == ("0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9")
    note = order_note(classes)
    assert note
    assert "output 2 of a model is class '10'" in note
    assert order_note(("00", "01", "02")) is None
    assert order_note(("a", "b")) is None


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
    same, cat = "the same image as", root / "test" / "cat"
    assert sorted(dataset.problems) == [
        f"{root}/train/cat/stolen.png: {same} {cat / '0.png'} of test; left out",
        f"{root}/train/dog/mislabelled.png: {same} {cat / '1.png'} of test under another label; left out",
    ]


def test_a_class_may_be_called_train(image_folder: MakeImages) -> None:
    root = image_folder(("bus", "train", "car"))
    assert load_dataset(str(root)).classes == ("bus", "car", "train")


def test_a_split_emptied_by_repeats_is_refused(image_folder: MakeImages) -> None:
    image_folder(name="d/train")
    root = image_folder(name="d/test").parent  # the same seed: the same images
    with pytest.raises(DataError, match="class 'cat' of d has no usable training image .16 problem"):
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
